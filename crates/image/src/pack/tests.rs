//! Programs are packed, unpacked and started in a chroot, which shows that nothing is missing. Needs
//! root, `cc` and busybox-static.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;

use serde_json::Value;

use super::*;

const BUSYBOX: &str = "/bin/busybox";

/// An image that was packed into a layout and unpacked into a directory.
struct Unpacked {
    dir: tempfile::TempDir,
    packed: Packed,
    compression: LayerCompression,
}

impl Unpacked {
    fn new(change: impl FnOnce(&mut PackOptions), program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = PackOutput::Layout(dir.path().join("image"));
        let mut options = PackOptions::new(program, output);
        change(&mut options);
        let packed = pack(&options).unwrap();
        let compression = options.compression;
        let unpacked = Self { dir, packed, compression };
        let mut archive = unpacked.tar();
        archive.set_preserve_permissions(true);
        archive.unpack(unpacked.root()).unwrap();
        unpacked
    }

    fn tar(&self) -> tar::Archive<Box<dyn io::Read>> {
        let layer = File::open(self.blob(&self.packed.layer)).unwrap();
        tar::Archive::new(match self.compression {
            LayerCompression::Gzip => Box::new(flate2::read::GzDecoder::new(layer)),
            LayerCompression::Zstd => Box::new(zstd::Decoder::new(layer).unwrap()),
        })
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let blobs = self.dir.path().join("image/blobs/sha256");
        blobs.join(digest.hex())
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.blob(&self.packed.config)).unwrap()).unwrap()
    }

    /// Starts the program in the image with the image's environment; its output.
    fn run(&self, args: &[&str]) -> String {
        let config = self.config();
        let env = config["config"]["Env"].as_array().unwrap().iter();
        let env: BTreeMap<_, _> =
            env.map(|pair| pair.as_str().unwrap().split_once('=').unwrap()).collect();
        let output = Command::new("/usr/sbin/chroot")
            .arg(self.root())
            .arg(&self.packed.program)
            .args(args)
            .env_clear()
            .envs(env)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "chroot needs root: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn a_static_program_with_all_options() {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("index.html"), "hello").unwrap();
    let image = Unpacked::new(
        |options| {
            options.include =
                vec![Include { host: site.path().to_owned(), container: "/srv".into() }];
            options.env = vec![("A".into(), "b=c".into()), ("PATH".into(), "/x".into())];
            options.args = vec!["httpd".into(), "-f".into()];
            options.expose = vec![Port::new(8080).unwrap()];
            options.user = Some("nobody".into());
            options.working_dir = Some("/srv".into());
            options.compression = LayerCompression::Zstd;
        },
        Path::new(BUSYBOX),
    );
    assert_eq!(image.run(&["cat", "/srv/index.html"]), "hello");
    assert!(image.packed.libraries.is_empty());
    let modes = image.run(&["stat", "-c", "%a %u %n", "/tmp", "/root", "/etc/passwd"]);
    assert_eq!(modes, "1777 0 /tmp\n700 0 /root\n644 0 /etc/passwd\n");
    for entry in image.tar().entries().unwrap() {
        assert_eq!(entry.unwrap().header().mtime().unwrap(), 0);
    }
    let config = image.config();
    assert_eq!(
        config["config"],
        json!({
            "Entrypoint": ["/usr/bin/busybox"], "Cmd": ["httpd", "-f"], "Env": ["A=b=c", "PATH=/x"],
            "ExposedPorts": {"8080/tcp": {}}, "User": "nobody", "WorkingDir": "/srv",
        })
    );
    assert_eq!(config["os"], "linux");
    let certificates = image.root().join("etc/ssl/certs/ca-certificates.crt");
    assert_eq!(certificates.exists(), Path::new(CA_CERTIFICATES).exists());
}

#[test]
fn a_dynamic_program_of_the_system() {
    let image = Unpacked::new(|_| (), Path::new("/bin/ls"));
    assert!(image.run(&["/usr/bin"]).contains("ls\n"));
    let libraries = image.packed.libraries.iter();
    let names: Vec<_> = libraries.filter_map(|path| path.file_name()?.to_str()).collect();
    for wanted in ["libc.so.6", "libselinux.so.1", "libresolv.so.2"] {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }
}

/// Compiles C with the options given and puts the result at `output`.
fn cc(output: &Path, source: &str, options: &[String]) {
    let file = output.with_extension("c");
    fs::write(&file, source).unwrap();
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    let status = Command::new("cc")
        .arg(&file)
        .arg("-o")
        .arg(output)
        .args(options)
        .status()
        .expect("cc is needed, as for Rust itself");
    assert!(status.success());
}

#[test]
fn libraries_are_found_by_rpath_and_runpath_here_and_in_the_image() {
    for tags in ["--disable-new-dtags", "--enable-new-dtags"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("lib/deep")).unwrap();
        let flags = |more: &[String]| {
            let mut flags = vec![format!("-Wl,{tags}"), format!("-L{}", at("lib").display())];
            flags.extend_from_slice(more);
            flags
        };
        let shared = ["-shared".to_owned(), "-fPIC".to_owned()];
        cc(&at("lib/deep/libinner.so"), "int inner(void) { return 40; }", &shared);
        let inner = [
            format!("-L{}", at("lib/deep").display()),
            "-linner".to_owned(),
            "-Wl,-rpath,$ORIGIN/deep".to_owned(),
        ];
        let source = "int inner(void); int outer(void) { return inner() + 2; }";
        cc(&at("lib/libouter.so"), source, &[&shared[..], &flags(&inner)].concat());
        let outer = [
            "-louter".to_owned(),
            "-Wl,-rpath,$ORIGIN/../lib".to_owned(),
            format!("-Wl,-rpath-link,{}", at("lib/deep").display()),
        ];
        fs::create_dir_all(at("bin")).unwrap();
        let source =
            "#include <stdio.h>\nint outer(void); int main(void) { printf(\"%d\", outer()); }";
        cc(&at("bin/app"), source, &flags(&outer));

        let image = Unpacked::new(|_| (), &at("bin/app"));
        assert_eq!(image.run(&[]), "42", "{tags}");

        fs::remove_file(at("lib/deep/libinner.so")).unwrap();
        let output = PackOutput::Layout(at("image"));
        let error = pack(&PackOptions::new(at("bin/app"), output)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("libouter.so needs libinner.so"), "{text}");
        assert!(!at("image").exists());
    }
}

#[test]
fn the_same_input_gives_the_same_digest_and_replaces_the_old_image() {
    for archive in [false, true] {
        for compression in [LayerCompression::Gzip, LayerCompression::Zstd] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("image");
            let mut options = PackOptions::new(
                BUSYBOX,
                match archive {
                    true => PackOutput::Archive(out.clone()),
                    false => PackOutput::Layout(out.clone()),
                },
            );
            options.compression = compression;
            let first = pack(&options).unwrap();
            let bytes = archive.then(|| fs::read(&out).unwrap());
            assert_eq!(pack(&options).unwrap(), first);
            assert_eq!(archive.then(|| fs::read(&out).unwrap()), bytes);
            options.args = vec!["sh".into()];
            let other = pack(&options).unwrap();
            assert_eq!((other.layer, other.digest == first.digest), (first.layer, false));
            let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
            assert_eq!(names.len(), 1, "nothing but the image is left: {names:?}");
        }
    }
}

#[test]
fn what_cannot_be_packed_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut other = fs::read(BUSYBOX).unwrap();
    other[18] = 8; // e_machine: MIPS
    let mut narrow = other.clone();
    narrow[4] = 1; // EI_CLASS: 32 bits
    let mut musl = fs::read("/bin/ls").unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2\0";
    if let Some(at) = musl.windows(loader.len()).position(|window| window == loader) {
        musl[at..at + 26].copy_from_slice(b"/lib/ld-musl-x86_64.so.1\0\0");
    }
    for (path, expected) in [
        (
            file("script", b"#!/usr/bin/python3 -u\nprint()"),
            "is a script for \"/usr/bin/python3 -u\"",
        ),
        (file("text", b"hello"), "it is not an ELF file"),
        (file("empty", b""), "it is not an ELF file"),
        (file("short", &fs::read(BUSYBOX).unwrap()[..80]), "not a sound ELF file"),
        (file("mips", &other), "a processor that is not supported"),
        (file("narrow", &narrow), "a 32-bit processor"),
        (file("musl", &musl), "ld-musl-x86_64.so.1"),
        (dir.path().to_owned(), "cannot read"),
        (dir.path().join("none"), "cannot find"),
    ] {
        let output = PackOutput::Layout(dir.path().join("image"));
        let error = pack(&PackOptions::new(&path, output)).unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", path.display());
    }
    assert!(!dir.path().join("image").exists());
    let occupied = file("precious", b"mine");
    for output in [
        PackOutput::Layout(occupied.clone()),
        PackOutput::Layout(dir.path().to_owned()),
        PackOutput::Archive(dir.path().to_owned()),
    ] {
        let error = pack(&PackOptions::new(BUSYBOX, output)).unwrap_err();
        assert!(matches!(error, PackError::Occupied { .. }), "{error}");
    }
    assert_eq!(fs::read(occupied).unwrap(), b"mine");
}

#[test]
fn includes_are_written_host_and_container() {
    let include: Include = "a:b:/c".parse().unwrap();
    assert_eq!((include.host, include.container), ("a:b".into(), "/c".into()));
    for bad in ["", "a", "a:b", ":/c"] {
        assert!(bad.parse::<Include>().unwrap_err().contains("PATH:/PATH"), "{bad}");
    }
}
