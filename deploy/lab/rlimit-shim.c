/*
 * For lab hosts on a machine that withholds CAP_SYS_RESOURCE. There the kernel lets CRIU read the
 * limits of processes of its own user only (kernel/sys.c, check_prlimit_permission), so that no
 * container with another user inside could be dumped. /proc/PID/limits says the same to root.
 *
 * Preloaded into criu by a wrapper; changes nothing where the kernel permits the call.
 * Plain functions of old standing only, so that a library built on one Debian runs on another.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>

int open(const char *, int, ...);
long read(int, void *, unsigned long);
int close(int);

struct limit64 { unsigned long long cur, max; };

static const char *const names[] = {
	"Max cpu time ", "Max file size ", "Max data size ", "Max stack size ",
	"Max core file size ", "Max resident set ", "Max processes ", "Max open files ",
	"Max locked memory ", "Max address space ", "Max file locks ", "Max pending signals ",
	"Max msgqueue size ", "Max nice priority ", "Max realtime priority ", "Max realtime timeout ",
};

static const char *number(const char *s, unsigned long long *out)
{
	while (*s == ' ')
		s++;
	if (*s == 'u') {	/* unlimited */
		*out = ~0ULL;
		while (*s && *s != ' ')
			s++;
		return s;
	}
	*out = 0;
	while (*s >= '0' && *s <= '9')
		*out = *out * 10 + (unsigned long long)(*s++ - '0');
	return s;
}

static int read_limit(int pid, unsigned res, struct limit64 *old)
{
	char path[40] = "/proc/", digits[12], text[4096], *p = path + 6, *d = digits;
	unsigned n = (unsigned)pid;
	long got, total = 0;
	int fd;

	do
		*d++ = (char)('0' + n % 10);
	while (n /= 10);
	while (d > digits)
		*p++ = *--d;
	for (const char *s = "/limits"; *s; s++)
		*p++ = *s;
	*p = 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	while (total < (long)sizeof(text) - 1 &&
	       (got = read(fd, text + total, sizeof(text) - 1 - (unsigned long)total)) > 0)
		total += got;
	close(fd);
	text[total] = 0;
	for (char *line = text; *line;) {
		const char *want = names[res], *have = line;

		while (*want && *want == *have)
			want++, have++;
		if (!*want) {
			number(number(have, &old->cur), &old->max);
			return 0;
		}
		while (*line && *line != '\n')
			line++;
		if (*line)
			line++;
	}
	return -1;
}

/* The kernel itself: syscall(3) is one of the functions replaced here. */
static long kernel(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "no system call for this architecture"
#endif
}

long syscall(long n, long a, long b, long c, long d, long e, long f)
{
	long r = kernel(n, a, b, c, d, e, f);
	struct limit64 *old = (struct limit64 *)d;

	if (n == SYS_prlimit64 && r == -EPERM && !c && old && a > 0 && b >= 0 &&
	    b < (long)(sizeof(names) / sizeof(*names)) && read_limit((int)a, (unsigned)b, old) == 0)
		r = 0;
	if (r < 0 && r > -4096) {
		errno = (int)-r;
		return -1;
	}
	return r;
}

int prlimit64(int pid, unsigned res, const void *new, void *old)
{
	return (int)syscall(SYS_prlimit64, pid, (long)res, (long)new, (long)old, 0, 0);
}

int prlimit(int pid, unsigned res, const void *new, void *old)
{
	return prlimit64(pid, res, new, old);
}
