"""Changes files without pause and knows what each of them has to be.

Runs as the container's process. In DIR/first it stops when CTL/stop appears, then writes
CTL/stopped. In DIR/second it goes on for ever, through any move, and checks every file it comes
by against what it remembers in its memory: CTL/wrong is written when one differs. CTL/count says
how many checks it has made.
usage: mutate.py DIR CTL
"""
import os
import random
import sys
import time

base, ctl = sys.argv[1:]
os.makedirs(ctl, exist_ok=True)
rnd = random.Random(7)


class Tree:
    def __init__(self, root):
        self.root, self.files, self.number = root, {}, 0
        for d in range(8):
            os.makedirs("%s/d%d" % (root, d), exist_ok=True)

    def wrong(self, path, what):
        with open(ctl + "/wrong", "a") as f:
            f.write("%s: %s\n" % (path, what))

    def check(self, path):
        want = self.files[path]
        try:
            st = os.lstat(path)
            if want[0] == "link":
                if os.readlink(path) != want[1]:
                    self.wrong(path, "target")
                return
            with open(path, "rb") as f:
                if f.read() != want[1]:
                    self.wrong(path, "contents")
            if st.st_mode & 0o7777 != want[2]:
                self.wrong(path, "mode %o, not %o" % (st.st_mode, want[2]))
            if st.st_mtime_ns != want[3]:
                self.wrong(path, "time %d, not %d" % (st.st_mtime_ns, want[3]))
        except OSError as e:
            self.wrong(path, str(e))

    def put(self, path, data, mode):
        with open(path, "wb") as f:
            f.write(data)
        os.chmod(path, mode)
        self.files[path] = ("file", data, mode, os.stat(path).st_mtime_ns)

    def fresh(self):
        self.number += 1
        return "%s/d%d/f%d" % (self.root, rnd.randrange(8), self.number)

    def step(self):
        some = rnd.choice(list(self.files)) if self.files else None
        if some:
            self.check(some)
        what = rnd.randrange(10) if some and len(self.files) < 400 else 9 if not some else 3
        if what in (0, 8, 9):
            self.put(self.fresh(), rnd.randbytes(rnd.choice((0, 10, 5000, 70000))), rnd.choice((0o600, 0o644, 0o4755)))
        elif what == 1 and self.files[some][0] == "file":
            self.put(some, rnd.randbytes(rnd.randrange(9000)), self.files[some][2])
        elif what == 2 and self.files[some][0] == "file":
            # Same size, same time: only reading the file shows that it changed.
            old = self.files[some]
            data = rnd.randbytes(len(old[1]))
            self.put(some, data, old[2])
            os.utime(some, ns=(old[3], old[3]))
            self.files[some] = ("file", data, old[2], old[3])
        elif what == 3:
            os.unlink(some)
            del self.files[some]
        elif what == 4:
            new = self.fresh()
            os.rename(some, new)
            self.files[new] = self.files.pop(some)
        elif what == 5:
            new = self.fresh()
            os.symlink("t%d" % self.number, new)
            self.files[new] = ("link", "t%d" % self.number)
        elif what == 6 and self.files[some][0] == "file":
            old = self.files[some]
            with open(some, "ab") as f:
                f.write(b"more")
            self.files[some] = ("file", old[1] + b"more", old[2], os.stat(some).st_mtime_ns)
        elif what == 7 and self.files[some][0] == "file":
            old = self.files[some]
            mode = old[2] ^ 0o020
            os.chmod(some, mode)
            self.files[some] = ("file", old[1], mode, old[3])


first, second = Tree(base + "/first"), Tree(base + "/second")
checks, stopped = 0, False
while True:
    if not stopped:
        first.step()
        if os.path.exists(ctl + "/stop"):
            stopped = True
            os.sync()
            open(ctl + "/stopped", "w").close()
    second.step()
    checks += 1
    if checks % 50 == 0:
        with open(ctl + "/count.new", "w") as f:
            f.write("%d" % checks)
        os.rename(ctl + "/count.new", ctl + "/count")
    time.sleep(0.001)
