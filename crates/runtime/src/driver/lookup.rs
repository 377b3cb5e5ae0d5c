//! Whether a program can be run, found out before a runtime is asked to.
//!
//! Each runtime says in words of its own, and at another moment, that a program is not there; some
//! only in the container's output. So it is looked up here first, in the root file system as the
//! container will see it, and what is wrong is said as the embedded runtime says it. What lies
//! in a file system that is mounted over the root is not ours to judge.

use std::io::{self, Read as _};
use std::path::Path;

use nix::Error as Errno;

use super::workload::{candidates, refusal};
use crate::rooted::Root;

/// File systems of the container's own lie here.
const MOUNTED: [&str; 3] = ["/proc", "/dev", "/sys"];
/// As much of a program as tells its kind.
const HEAD: usize = 256;

/// Says why the program of `args` cannot be run, when that is sure.
pub(super) fn check(rootfs: &Path, args: &[&str], env: &[&str], cwd: &str) -> Result<(), String> {
    let program = args.first().ok_or("no program to run")?;
    if let Some(text) = args.iter().chain(env).find(|text| text.contains('\0')) {
        return Err(format!("exec: {text:?} contains a zero byte"));
    }
    let root = Root::open(rootfs).map_err(|error| format!("opening the root: {error}"))?;
    let mut worst: Option<(String, Errno, bool)> = None;
    for candidate in candidates(program, env) {
        let path = Path::new(cwd).join(&candidate);
        if is_mounted(&path) {
            return Ok(());
        }
        match judge(&root, &path) {
            Ok(()) => return Ok(()),
            Err((Errno::ENOENT | Errno::ENOTDIR, false)) if !program.contains('/') => {}
            Err((errno, is_there)) => worst = worst.or(Some((candidate, errno, is_there))),
        }
    }
    let worst = worst.as_ref().map(|(path, errno, is_there)| (path.as_str(), *errno, *is_there));
    Err(refusal(program, worst))
}

fn is_mounted(path: &Path) -> bool {
    MOUNTED.iter().any(|mounted| path.starts_with(mounted))
}

/// What the kernel would say to running this file, and whether the file itself is there.
fn judge(root: &Root, path: &Path) -> Result<(), (Errno, bool)> {
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut file = root.open_program(path).map_err(|error| (errno(error), false))?;
    let mut head = Vec::new();
    let read = file.by_ref().take(HEAD as u64).read_to_end(&mut head);
    read.map_err(|error| (errno(error), true))?;
    if head.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let Some(line) = head.strip_prefix(b"#!") else { return Err((Errno::ENOEXEC, true)) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    match line.split_whitespace().next() {
        None => Err((Errno::ENOEXEC, true)),
        Some(interpreter) if is_mounted(Path::new(interpreter)) => Ok(()),
        Some(interpreter) => match root.open_program(Path::new(interpreter)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err((Errno::ENOENT, true)),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn says_what_the_embedded_runtime_says() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let put = |name: &str, text: &str, mode: u32| {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        put("elf", "\x7fELF...", 0o755);
        put("script", "#! /bin/elf -x\n", 0o755);
        put("plain", "#!/bin/elf\n", 0o644);
        put("loose", "#!/no/such\n", 0o755);
        put("text", "hello", 0o755);
        symlink("/bin/elf", bin.join("link")).unwrap();
        symlink("/etc/hostname", bin.join("out")).unwrap();
        let check = |program: &str| check(dir.path(), &[program], &["PATH=/x:/bin"], "/bin");
        for good in ["elf", "script", "/bin/elf", "link", "./elf", "/proc/self/exe", "/dev/x"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("none", "exec: none: not found in PATH"),
            ("/none", "exec: /none: no such file"),
            ("plain", "exec: /bin/plain: permission denied"),
            ("/bin", "exec: /bin: permission denied"),
            ("loose", "interpreter or loader is not"),
            ("text", "not a program for this machine"),
            ("/bin/out", "exec: /bin/out: no such file"),
            ("a\0b", "zero byte"),
        ] {
            let why = check(bad).unwrap_err();
            assert!(why.contains(expected), "{bad}: {why}");
        }
    }
}
