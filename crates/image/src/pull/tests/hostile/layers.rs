//! Names, links and whiteouts that reach for what is not theirs.

use super::*;

/// A symbolic link with a target of any length.
fn long_link(archive: Archive, name: &str, target: &str) -> Archive {
    archive.pax(&[("linkpath", target.as_bytes())]).symlink(name, "x")
}

/// Up from any depth that a test has, then down to `path`.
fn climbing(path: &str) -> String {
    "../".repeat(40) + path.trim_start_matches('/')
}

fn archive() -> Archive {
    Archive::default()
}

pub(super) fn cases() -> Vec<Case> {
    [names(), symlinks(), hard_links(), across_layers(), whiteouts(), attributes()]
        .into_iter()
        .flatten()
        .collect()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn names() -> Vec<Case> {
    vec![
        refused(
            "a name that climbs",
            |_| layer(archive().file("../outside/secret", b"x")),
            &["unpacking the layer sha256:", "entry \"../outside/secret\"", "'..'"],
        ),
        refused(
            "a name that climbs in the middle",
            |_| layer(archive().file("a/../../outside/secret", b"x")),
            &["entry \"a/../../outside/secret\"", "'..'"],
        ),
        refused("the directory above", |_| layer(archive().directory("..")), &["\"..\"", "'..'"]),
        refused(
            "a pax name that climbs",
            |to| layer(archive().pax(&[("path", climbing(to).as_bytes())]).file("f", b"x")),
            &["entry \"../../", "'..'"],
        ),
        refused(
            "a GNU name that climbs",
            |_| layer(archive().extension(b'L', b"../x\0").file("f", b"x")),
            &["entry \"../x\"", "'..'"],
        ),
        refused(
            "a prefix that climbs",
            |_| layer(archive().raw(RawHeader::new(b'0', b"name").set(345, b"../x"), b"")),
            &["entry \"../x/name\"", "'..'"],
        ),
        refused(
            "a pax name with NUL",
            |_| layer(archive().pax(&[("path", b"a\0b")]).file("f", b"x")),
            &["of entry 1", "\"path\"", "a\\0b"],
        ),
        refused(
            "a GNU name with NUL",
            |_| layer(archive().extension(b'L', b"a\0b\0").file("f", b"x")),
            &["entry", "NUL"],
        ),
        refused(
            "a part of 256 bytes",
            |_| layer(archive().pax(&[("path", &[b'a'; 256])]).file("f", b"x")),
            &["entry \"aaaa", "255 bytes"],
        ),
        refused(
            "a path longer than the kernel's",
            |_| layer(archive().pax(&[("path", &b"abcdefg/".repeat(600))]).directory("d")),
            &["of entry 1", "4095"],
        ),
        refused(
            "a path 200 directories deep",
            |_| layer(archive().pax(&[("path", &b"a/".repeat(200))]).directory("d")),
            &["entry \"a/a/", "128 directories"],
        ),
        refused("no name", |_| layer(archive().file("", b"x")), &["of entry 1", "empty path"]),
        refused(
            "a file that ends in a slash",
            |_| layer(archive().file("a/", b"x")),
            &["entry \"a/\"", "must not end in '/'"],
        ),
        refused("a file for the root", |_| layer(archive().symlink("./", "x")), &["root"]),
        inside(
            "an absolute name of the machine",
            |to| {
                layer(archive().pax(&[("path", format!("{to}/secret").as_bytes())]).file("f", b"x"))
            },
            |tree| assert!(tree.names().iter().any(|name| name.ends_with("outside/secret"))),
        ),
        inside(
            "names of the other systems",
            |_| {
                layer(
                    archive()
                        .file(r"..\..\etc\passwd", b"x")
                        .file("C:", b"")
                        .file("a\n\x1b[2Jb", b""),
                )
            },
            |tree| tree.assert_file(r"..\..\etc\passwd", b"x"),
        ),
        inside(
            "names that are not UTF-8",
            |_| layer(archive().file(b"\xff/\xc0\xae\xc0\xae/\xfe", b"x")),
            |tree| tree.assert_file(b"\xff/\xc0\xae\xc0\xae/\xfe", b"x"),
        ),
    ]
}

fn symlinks() -> Vec<Case> {
    vec![
        refused(
            "a file through an absolute link",
            |to| layer(archive().symlink("l", to).file("l/planted", b"x")),
            &["entry \"l\"", "symbolic link above it leads to nothing"],
        ),
        refused(
            "a file through a climbing link",
            |to| layer(long_link(archive(), "l", &climbing(to)).file("l/planted", b"x")),
            &["entry \"l\"", "leads to nothing"],
        ),
        refused(
            "a file through the root of a process",
            |_| layer(archive().symlink("l", "/proc/self/root/etc").file("l/planted", b"x")),
            &["entry \"l\"", "leads to nothing"],
        ),
        refused(
            "a file through a circle of links",
            |_| layer(archive().symlink("a", "b").symlink("b", "a").file("a/f", b"x")),
            &["entry \"a\"", "round in a circle"],
        ),
        refused(
            "a directory that makes way for a link",
            |to| {
                let made = archive().directory("d").file("d/f", b"x");
                layer(made.symlink("d", to).file("d/secret", b"x"))
            },
            &["entry \"d\"", "leads to nothing"],
        ),
        refused(
            "directories made deep through links",
            |_| {
                let deep = "d/".repeat(60);
                let made = archive().pax(&[("path", deep.as_bytes())]).directory("x");
                let made = made.pax(&[("linkpath", deep.as_bytes())]).symlink("s", "x");
                let more = format!("s/{}", "e/".repeat(60));
                let made = made.pax(&[("path", more.as_bytes())]).directory("x");
                let made = made.pax(&[("linkpath", more.as_bytes())]).symlink("t", "x");
                layer(made.pax(&[("path", format!("t/{deep}").as_bytes())]).directory("x"))
            },
            &["entry \"t/d", "128 directories"],
        ),
        refused(
            "a link longer than any path",
            |_| layer(archive().pax(&[("linkpath", &[b'a'; 5000])]).symlink("l", "x")),
            &["of entry 1", "4095"],
        ),
        refused(
            "a link to nothing",
            |_| layer(archive().symlink("l", "")),
            &["entry \"l\"", "target"],
        ),
        inside(
            "a file in place of a link to the machine",
            |to| layer(archive().symlink("l", format!("{to}/secret")).file("l", b"own")),
            |tree| tree.assert_file("l", b"own"),
        ),
        inside(
            "a directory in place of a link to the machine",
            |to| layer(archive().symlink("l", to).directory("l").file("l/secret", b"own")),
            |tree| tree.assert_file("l/secret", b"own"),
        ),
        inside(
            "a link to the machine that nothing uses",
            |to| layer(archive().symlink("l", to)),
            |tree| assert_eq!(tree.get("l").kind, 'l'),
        ),
        inside(
            "a climbing link to a directory of its own",
            |_| layer(long_link(archive().directory("d"), "l", &climbing("d")).file("l/f", b"own")),
            |tree| tree.assert_file("d/f", b"own"),
        ),
    ]
}

fn hard_links() -> Vec<Case> {
    const MISSING: &[&str] = &["entry \"h\"", "hard link target", "is not in the layer before it"];
    vec![
        refused(
            "a hard link to the machine",
            |to| {
                let target = format!("{to}/secret");
                layer(archive().pax(&[("linkpath", target.as_bytes())]).hard_link("h", "x"))
            },
            MISSING,
        ),
        refused(
            "a hard link that climbs",
            |_| layer(archive().hard_link("h", "../outside/secret")),
            &["entry \"h\"", "'..'"],
        ),
        refused(
            "a hard link through a link to the machine",
            |to| layer(archive().symlink("l", to).hard_link("h", "l/secret")),
            MISSING,
        ),
        refused("a hard link to itself", |_| layer(archive().hard_link("h", "h")), MISSING),
        refused(
            "a hard link to what comes later",
            |_| layer(archive().hard_link("h", "f").file("f", b"x")),
            MISSING,
        ),
        refused(
            "a hard link to a whiteout",
            |_| layer(archive().file(".wh.f", b"").hard_link("h", "f")),
            MISSING,
        ),
        refused(
            "a hard link to a file of a lower layer",
            |_| two(archive().file("f", b"x"), archive().hard_link("h", "f")),
            MISSING,
        ),
        refused(
            "a hard link to a directory",
            |_| layer(archive().directory("d").hard_link("h", "d")),
            &["entry \"h\"", "is not a file"],
        ),
        refused(
            "a hard link in place of its own directory",
            |_| layer(archive().file("h/f", b"x").hard_link("h", "h/f")),
            MISSING,
        ),
        inside(
            "a file through a hard link to a link to the machine",
            |to| {
                let made = archive().symlink("l", format!("{to}/secret")).hard_link("h", "l");
                layer(made.file("h", b"own"))
            },
            |tree| tree.assert_file("h", b"own"),
        ),
    ]
}

fn across_layers() -> Vec<Case> {
    vec![
        inside(
            "a directory over a link to the machine",
            |to| two(archive().symlink("etc", to), archive().file("etc/secret", b"own")),
            |tree| tree.assert_file("etc/secret", b"own"),
        ),
        inside(
            "a whiteout below a link to the machine",
            |to| two(archive().symlink("d", to), archive().file("d/.wh.secret", b"")),
            |tree| assert_eq!(tree.names(), ["d"]),
        ),
        inside(
            "an opaque directory over a link to the machine",
            |to| two(archive().symlink("d", to), archive().file("d/.wh..wh..opq", b"")),
            |tree| assert_eq!(tree.get("d").kind, 'd'),
        ),
        inside(
            "a link to the machine over a directory, and a file below it",
            |to| {
                let lower = two(archive().file("d/f", b"x"), archive().symlink("d", to));
                lower.gzip(archive().file("d/secret", b"own"))
            },
            |tree| {
                tree.assert_file("d/secret", b"own");
                assert_eq!(tree.names(), ["d", "d/secret"]);
            },
        ),
        inside(
            "a link over a directory without an entry",
            |to| {
                let lower = archive().raw(RawHeader::new(b'5', b"d").mode(0o1777), b"");
                two(lower, archive().file("d/f", b"x")).gzip(archive().symlink("d", to))
            },
            |tree| assert_eq!(tree.get("d").kind, 'l'),
        ),
        inside(
            "the same layer 400 times",
            |to| {
                (0..400)
                    .fold(ImageParts::default(), |parts, _| parts.plain(archive().symlink("l", to)))
            },
            |tree| assert_eq!(tree.names(), ["l"]),
        ),
    ]
}

fn whiteouts() -> Vec<Case> {
    const REFUSED: &[&str] = &["a whiteout must name one entry beside it"];
    vec![
        refused("a whiteout of nothing", |_| layer(archive().file(".wh.", b"")), REFUSED),
        refused("a whiteout of the directory", |_| layer(archive().file(".wh..", b"")), REFUSED),
        refused("a whiteout of what is above", |_| layer(archive().file("a/.wh...", b"")), REFUSED),
        refused(
            "a whiteout with a slash",
            |_| layer(archive().file(".wh./etc/passwd", b"")),
            &["entry \".wh./etc/passwd\"", "a whiteout must name"],
        ),
        refused(
            "something below a whiteout",
            |_| layer(archive().file("a/.wh.b/c", b"x")),
            REFUSED,
        ),
        refused(
            "a whiteout through a link to the machine",
            |to| layer(archive().symlink("l", to).file("l/.wh.secret", b"")),
            &["entry \"l\"", "leads to nothing"],
        ),
        inside(
            "an opaque mark that is a directory with files",
            |_| {
                let mark = archive().directory("d/.wh..wh..opq").file("d/.wh..wh..opq/f", b"x");
                two(archive().file("d/lower", b""), mark)
            },
            |tree| assert_eq!(tree.names(), ["d"]),
        ),
        inside(
            "private directories of aufs",
            |_| layer(archive().file(".wh..wh.plnk/1.2", b"x").hard_link(".wh..wh.aufs", "gone")),
            |tree| assert_eq!(tree.names(), [""; 0]),
        ),
        inside(
            "a device that would be a whiteout",
            |_| {
                let mut header = RawHeader::new(b'3', b"f");
                header.octal(329..337, 0).octal(337..345, 0);
                two(archive().file("f", b"kept"), archive().raw(&header, b""))
            },
            |tree| tree.assert_file("f", b"kept"),
        ),
        inside(
            "a whiteout of the root's contents",
            |_| two(archive().file("f", b"x"), archive().file(".wh..wh..opq", b"").file("g", b"")),
            |tree| assert_eq!(tree.names(), ["g"]),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn attributes() -> Vec<Case> {
    vec![
        inside(
            "the xattrs of overlayfs",
            |_| {
                let records: [(&str, &[u8]); 6] = [
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/elsewhere"),
                    ("SCHILY.xattr.trusted.overlay.metacopy", b""),
                    ("SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
                    ("SCHILY.xattr.user.overlay.opaque", b"y"),
                    ("SCHILY.xattr.user.overlay.redirect", b"/elsewhere"),
                ];
                let lower = archive().file("d/kept", b"x").file("elsewhere/f", b"");
                two(lower, archive().pax(&records).directory("d"))
            },
            |tree| tree.assert_file("d/kept", b"x"),
        ),
        inside(
            "labels of the machine's policy",
            |_| {
                let records: [(&str, &[u8]); 5] = [
                    ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
                    ("SCHILY.xattr.security.ima", b"x"),
                    ("SCHILY.xattr.security.evm", b"x"),
                    ("SCHILY.xattr.system.posix_acl_access", b"x"),
                    ("SCHILY.xattr.trusted.other", b"x"),
                ];
                layer(archive().pax(&records).file("f", b"x"))
            },
            |tree| assert!(tree.get("f").xattrs.is_empty()),
        ),
        refused(
            "a capability that is none",
            |_| layer(archive().pax(&[("SCHILY.xattr.security.capability", b"x")]).file("f", b"")),
            &["entry \"f\"", "\"security.capability\"", "1 bytes"],
        ),
        refused(
            "xattrs of more than 64 KiB",
            |_| layer(archive().pax(&[("SCHILY.xattr.user.big", &[7; 70_000])]).file("f", b"")),
            &["more than 65536 bytes of extended attributes"],
        ),
        refused(
            "more than 64 xattrs",
            |_| {
                let names: Vec<String> =
                    (0..65).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
                let records: Vec<(&str, &[u8])> =
                    names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
                layer(archive().pax(&records).file("f", b""))
            },
            &["more than 64 extended attributes"],
        ),
        refused(
            "an xattr without a name",
            |_| layer(archive().pax(&[("SCHILY.xattr.", b"x")]).file("f", b"")),
            &["of entry 1", "SCHILY.xattr."],
        ),
        inside(
            "a setuid program with capabilities",
            |_| {
                let all = [1, 0, 0, 2, 255, 255, 255, 255, 0, 0, 0, 0, 255, 1, 0, 0, 0, 0, 0, 0];
                let made = archive().pax(&[("SCHILY.xattr.security.capability", &all)]);
                layer(made.raw(RawHeader::new(b'0', b"su").mode(0o6755), b""))
            },
            // It has no effect there: no instance gains privileges by a program (tests/e2e).
            |tree| assert_eq!(tree.get("su").mode, 0o6755),
        ),
        inside(
            "devices, a fifo, and links to them",
            |_| {
                let disk = RawHeader::new(b'4', b"dev/sda").octal(329..337, 8).clone();
                let kmem = RawHeader::new(b'3', b"dev/kmem").octal(329..337, 1).clone();
                let made = archive().raw(&disk, b"").raw(&kmem, b"");
                layer(made.hard_link("disk", "dev/sda").raw(&RawHeader::new(b'6', b"fifo"), b""))
            },
            |tree| assert_eq!(tree.names(), [""; 0]),
        ),
        refused(
            "the owner that means nobody",
            |_| layer(archive().pax(&[("uid", b"4294967295")]).file("f", b"")),
            &["of entry 1", "owner"],
        ),
        refused(
            "a negative owner",
            |_| layer(archive().raw(RawHeader::new(b'0', b"f").set(108, &[0xff; 8]), b"")),
            &["of entry 1", "owner"],
        ),
    ]
}
