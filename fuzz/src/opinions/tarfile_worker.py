"""Reads archives from its input, each after its length, and tells what tarfile makes of each."""
import hashlib
import io
import json
import struct
import sys
import tarfile


def opinion(archive):
    items = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", errorlevel=2) as tar:
        for member in tar:
            item = {"path": member.name.encode("utf-8", "surrogateescape").hex()}
            if member.isreg():
                contents = tar.extractfile(member).read()
                item.update(kind="file", size=len(contents))
                item["sha256"] = hashlib.sha256(contents).hexdigest()
            elif member.isdir():
                item["kind"] = "directory"
            elif member.issym() or member.islnk():
                item["kind"] = "symlink" if member.issym() else "link"
                item["target"] = member.linkname.encode("utf-8", "surrogateescape").hex()
            items.append(item)
    return items


source = sys.stdin.buffer
while len(length := source.read(4)) == 4:
    archive = source.read(struct.unpack("<I", length)[0])
    try:
        answer = opinion(archive)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
