"""Writes the layers of an image with every corner that an image can have, lowest first."""
import io
import subprocess
import sys
import tarfile
import tempfile

target = sys.argv[1]


class Layer:
    def __init__(self, name):
        self.path = f"{target}/{name}.tar"
        self.tar = tarfile.open(self.path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8",
                                errors="surrogateescape")

    def add(self, name, kind=tarfile.REGTYPE, data=b"", **fields):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode, info.mtime = kind, len(data), 0o644, 1500000000
        if kind == tarfile.DIRTYPE:
            info.mode = 0o755
        for key, value in fields.items():
            setattr(info, key, value)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name, **fields):
        return self.add(name, tarfile.DIRTYPE, **fields)

    def link(self, name, to):
        return self.add(name, tarfile.SYMTYPE, linkname=to)

    def hard(self, name, to):
        return self.add(name, tarfile.LNKTYPE, linkname=to)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tar.close()


def odd(name):
    return name.decode("utf-8", "surrogateescape")


capability = bytes([1, 0, 0, 2, 0, 4] + 14 * [0]).decode("latin-1")
with Layer("0-base") as base:
    base.directory("./", mode=0o755)
    for name in ["bin", "etc", "gone", "opaque", "opaque/sub", "opaque-later", "links", "morph"]:
        base.directory(name)
    base.directory("tmp", mode=0o1777).directory("private", mode=0o700, uid=1000, gid=2000)
    # Names.
    base.add(odd(b"\xff\xfe not UTF-8"), data=b"odd").add("new\nline\\ \t*", data=b"odd")
    base.add("-dash", data=b"x").add("é", data=b"x").add("e\u0301", data=b"x").add("N", data=b"x")
    base.add("n" * 255, data=b"long")
    for depth in range(1, 16):
        base.directory("/".join(["p" * 240] * depth))
    base.add("/".join(["p" * 240] * 15) + "/deep", data=b"deep")
    # Owners, modes, times.
    base.add("bin/su", data=b"#!", mode=0o6755).add("bin/owned", uid=1234, gid=5678, mode=0o040)
    base.add("highest-owner", uid=2147483646, gid=2147483646)
    base.add("old", mtime=-86400.25).add("future", mtime=4102444800)
    base.add("precise", pax_headers={"mtime": "1234567890.123456789"})
    base.add("attributes", data=b"x", pax_headers={
        "SCHILY.xattr.user.note": "kept\nbinary",
        "SCHILY.xattr.security.capability": capability,
        "SCHILY.xattr.trusted.other": "host",
    })
    # Links.
    base.add("links/a", data=b"linked").hard("links/b", "links/a").hard("again", "links/b")
    base.link("absolute", "/etc/passwd").link("climbing", "../../../etc").link("dangling", "no/where")
    base.hard("hard-to-link", "dangling").link("long-link", "t" * 3000)
    base.add("bin/null", tarfile.CHRTYPE, devmajor=1, devminor=3).add("fifo", tarfile.FIFOTYPE)
    # For the layers above.
    base.add("gone/file").add("gone/kept").add("gone-file").add("replaced", data=b"old")
    base.add("opaque/old").add("opaque/sub/old").add("opaque-later/old")
    base.add("morph/file", data=b"x").directory("morph/directory").add("morph/directory/old")
    base.link("morph/link", "directory").add("touched", data=b"x", mode=0o600)
    base.directory("linked").add("linked/below")

with tempfile.TemporaryDirectory() as source:
    for name in ["holes", "all-hole"]:
        with open(f"{source}/{name}", "wb") as file:
            if name == "holes":
                for at in [0, 300000, 900000]:
                    file.seek(at)
                    file.write(b"data" * 1000)
            file.truncate(2000000)
    options = ["--mtime=@1500000000", "--owner=0", "--group=0", "--numeric-owner", "--mode=644", "-S"]
    # Those of pax: docker does not know GNU's older ones, which GNU tar is a judge of elsewhere.
    subprocess.run(["tar", "-cf", f"{target}/1-sparse.tar", "-C", source, "--format=posix", *options,
                    "holes", "all-hole"], check=True)

with Layer("3-changes") as changes:
    changes.add(".wh.gone-file").directory("gone").add("gone/.wh.file")
    changes.add("opaque/.wh..wh..opq").directory("opaque").add("opaque/new")
    changes.directory("opaque-later").add("opaque-later/new").add("opaque-later/.wh..wh..opq")
    changes.add(".wh.replaced").add("replaced", data=b"new")
    changes.directory("morph").directory("morph/file").add("morph/file/inside")
    changes.link("morph/directory", "file").add("morph/link", data=b"file")
    changes.directory("links").add("links/b", data=b"no longer linked")
    changes.add("touched", data=b"x", mode=0o644, mtime=1600000000)
    changes.directory("private", mode=0o750, uid=1, gid=2)
    changes.add("tmp/file-in-a-directory-without-entry")
    changes.add(".wh.never-there")

with Layer("4-back") as back:
    back.directory("morph").add("morph/file", data=b"a file again").directory("morph/directory")
    back.add("morph/directory/new").directory("morph/link").add("morph/link/inside")
    back.add("opaque/old", data=b"back again").directory("opaque")
    back.add(".wh.linked").add("gone-file", data=b"back again")

with Layer("5-empty"):
    pass

with Layer("6-root") as root:
    root.directory("./", mode=0o711, mtime=1400000000)
