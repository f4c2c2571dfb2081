"""Makes a tree with every kind of file that a container can hold.

usage: make_tree.py DIR
"""
import os
import socket
import stat
import struct
import sys

root = sys.argv[1]
os.makedirs(root)
os.chdir(root)
os.umask(0)


def write(path, data=b"x", mode=0o644):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)


# contents and sizes around the usual boundaries
os.mkdir("sizes")
for n in (0, 1, 511, 512, 4095, 4096, 4097, 65535, 65536, 1048576 + 3, 5 * 1048576):
    write("sizes/%d" % n, os.urandom(n))

# owners and modes, also those without any permission
os.mkdir("modes")
for mode in (0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
    write("modes/%04o" % mode)
for i, (u, g) in enumerate(((0, 0), (1, 2), (1000, 1000), (65534, 65534), (4000000000, 4000000001))):
    write("modes/owner%d" % i)
    os.chown("modes/owner%d" % i, u, g)
write("modes/owned-setuid")
os.chown("modes/owned-setuid", 1000, 1000)
os.chmod("modes/owned-setuid", 0o6755)
for mode in (0o000, 0o555, 0o1777, 0o2775):
    os.mkdir("modes/dir%04o" % mode)
    write("modes/dir%04o/inside" % mode)
    os.chmod("modes/dir%04o" % mode, mode)

# extended attributes
os.mkdir("xattrs")
write("xattrs/user")
os.setxattr("xattrs/user", "user.plain", b"value")
os.setxattr("xattrs/user", "user.empty", b"")
os.setxattr("xattrs/user", "user.binary", bytes(range(256)))
os.setxattr("xattrs/user", "user.large", b"v" * 2000)
write("xattrs/capability", b"x", 0o755)
os.setxattr("xattrs/capability", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
write("xattrs/trusted")
os.setxattr("xattrs/trusted", "trusted.mark", b"t")
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in (
    (1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)))
try:
    write("xattrs/acl")
    os.setxattr("xattrs/acl", "system.posix_acl_access", acl)
    os.mkdir("xattrs/acl-dir")
    os.setxattr("xattrs/acl-dir", "system.posix_acl_default", acl)
except OSError as e:
    print("no ACLs here: %s" % e, file=sys.stderr)
os.mkdir("xattrs/dir")
os.setxattr("xattrs/dir", "user.on-a-directory", b"d")
os.symlink("user", "xattrs/symlink")
os.setxattr("xattrs/symlink", "trusted.on-a-link", b"l", follow_symlinks=False)

# hard links, also of other kinds than files and across directories
os.makedirs("links/far/away")
write("links/one", b"shared contents")
os.link("links/one", "links/two")
os.link("links/one", "links/far/away/three")
os.mkfifo("links/fifo")
os.link("links/fifo", "links/fifo-again")
os.symlink("one", "links/symlink")
os.link("links/symlink", "links/symlink-again", follow_symlinks=False)

# symbolic links of every sort
os.mkdir("symlinks")
for name, target in (("relative", "../sizes/1"), ("absolute", "/etc/passwd"), ("broken", "nowhere"),
                     ("loop", "loop"), ("dir", "../modes"), ("escape", "../../../../../../etc/shadow"),
                     ("long", "x/" * 1000 + "end"), ("bytes", b"\xff\xfe")):
    os.symlink(target, os.path.join(b"symlinks", os.fsencode(name)) if isinstance(target, bytes) else "symlinks/" + name)
os.lchown("symlinks/broken", 1000, 1001)

# sparse files
os.mkdir("sparse")
with open("sparse/hole-only", "wb") as f:
    f.truncate(64 << 20)
with open("sparse/islands", "wb") as f:
    for at in (0, 10 << 20, 40 << 20):
        f.seek(at)
        f.write(os.urandom(5000))
    f.truncate(48 << 20)
with open("sparse/data-at-end", "wb") as f:
    f.seek((20 << 20) - 1)
    f.write(b"z")

# special files
os.mkdir("special")
os.mkfifo("special/fifo", 0o620)
os.mknod("special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("special/zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
os.mknod("special/full", stat.S_IFCHR | 0o622, os.makedev(1, 7))
os.chown("special/full", 1000, 5)
s = socket.socket(socket.AF_UNIX)
s.bind("special/socket")

# names
os.mkdir("names")
for name in (b"-rf", b" leading and trailing ", b"new\nline", b"tab\t", b"\xff\xfe not utf-8", "é ü 雪".encode(),
             b"'quote\"", b"back\\slash", b"$(command)", b"*", b".hidden", b"...", b"n" * 255, b"\x01\x7f"):
    with open(os.path.join(b"names", name), "wb") as f:
        f.write(name)
deep = "names/deep"
os.mkdir(deep)
for _ in range(60):
    deep += "/" + "d" * 30
    os.mkdir(deep)
write(deep + "/bottom")

# many entries, empty directories
os.mkdir("many")
for i in range(2000):
    write("many/%04d" % i, b"%d" % i)
os.makedirs("empty/empty/empty")

# times: before 1970, beyond 2038, odd nanoseconds, on every kind; last, since it all changes times
os.mkdir("times")
for name, ns in (("old", -1_000_000_001), ("zero", 0), ("nano", 1_234_567_890_123_456_789),
                 ("future", 5_000_000_000_000_000_007)):
    write("times/" + name)
    os.utime("times/" + name, ns=(ns, ns))
os.utime("symlinks/broken", ns=(7, 1_000_000_000_000_000_009), follow_symlinks=False)
os.utime("special/fifo", ns=(7, 1_000_000_000_000_000_011))
os.utime("special/null", ns=(7, 1_000_000_000_000_000_013))
os.utime("empty/empty", ns=(7, 1_000_000_000_000_000_015))
os.utime("times", ns=(7, 1_000_000_000_000_000_017))
