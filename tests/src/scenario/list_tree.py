"""Lists a tree, one JSON object an entry, sorted by path: everything a move has to keep.

Independent of tranship: run with the container image's Python on the host's file system.
usage: list_tree.py DIR
"""
import hashlib
import json
import os
import stat
import sys

root = os.fsencode(sys.argv[1])
first = {}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
         stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block"}


def show(b):
    return b.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()


def entry(path):
    st = os.lstat(path)
    name = os.path.relpath(path, root)
    out = {"path": show(name), "kind": KINDS[stat.S_IFMT(st.st_mode)], "mode": oct(stat.S_IMODE(st.st_mode)),
           "owner": "%d:%d" % (st.st_uid, st.st_gid), "mtime_ns": st.st_mtime_ns}
    out["xattrs"] = {k: os.getxattr(path, k, follow_symlinks=False).hex()
                     for k in sorted(os.listxattr(path, follow_symlinks=False))}
    if out["kind"] != "dir":
        out["nlink"] = st.st_nlink
        out["same_as"] = show(first.setdefault((st.st_dev, st.st_ino), name))
    if out["kind"] == "link":
        out["target"] = show(os.readlink(path))
    if out["kind"] in ("char", "block"):
        out["device"] = "%d:%d" % (os.major(st.st_rdev), os.minor(st.st_rdev))
    if out["kind"] == "file":
        out["size"] = st.st_size
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        out["sha256"] = digest.hexdigest()
        # Holes may grow where zeros were, never shrink: checked by the reader.
        out["allocated"] = st.st_blocks * 512
    return out


def walk(path):
    yield entry(path)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in sorted(os.listdir(path)):
            yield from walk(os.path.join(path, name))


for e in walk(root):
    print(json.dumps(e, sort_keys=True))
