//! From CRIU's log to a cause and an advice.
//!
//! Matched on text, not on source lines, which move with every version. The table is data; a line matches
//! an entry when it contains all its parts.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Of a log, this much is read: its end, in bytes.
const LOG_LIMIT: u64 = 4 << 20;
/// Error lines kept, and the length each is cut to, in characters.
const MAX_LINES: usize = 5;
const MAX_LINE: usize = 400;

/// Why a dump or restore failed, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What is wrong.
    pub cause: String,
    /// What the operator can do.
    pub advice: String,
    /// The line of the log that says so.
    pub line: String,
}

type Entry = (&'static [&'static str], &'static str, &'static str);

/// (parts of the line, cause, advice); the first match counts, so the special stands before the general.
const TABLE: &[Entry] = &[
    (
        &["io_uring"],
        "the application uses io_uring, which cannot be checkpointed",
        "turn io_uring off in the application (libuv programs: UV_USE_IO_URING=0), or start the container with `tranship run`, whose seccomp filter denies it",
    ),
    (
        &["Can't dump file", "(anon anon_inode:"],
        "the application holds a kernel object that cannot be checkpointed",
        "close or disable the feature named in the line (userfaultfd, perf, bpf, kvm)",
    ),
    (
        &["Can't dump file", "(chr "],
        "the application has a device open",
        "a container that uses this device cannot be moved",
    ),
    (
        &["Can't handle non-regular mapping"],
        "device memory is mapped",
        "a container that uses this device cannot be moved",
    ),
    (
        &["Unsupported mapping found"],
        "a kind of memory mapping that CRIU does not know",
        "report it with the dump log; it depends on the application",
    ),
    (
        &["Unsupported proto 262"],
        "a socket uses MPTCP",
        "start the application with GODEBUG=multipathtcp=0, or set net.mptcp.enabled=0 in the container",
    ),
    (
        &["Unsupported proto "],
        "a socket uses a protocol that cannot be checkpointed",
        "SCTP, DCCP and the like cannot be moved",
    ),
    (
        &["Connected TCP socket, consider using"],
        "established TCP connections are not allowed",
        "allow established TCP connections",
    ),
    (&["In-flight connection"], "a connection waits to be accepted", "try again"),
    (&["Can't dump corked dgram socket"], "a UDP socket is corked", "try again later"),
    (
        &["External socket is used"],
        "a Unix socket is connected to a process outside of the container",
        "close the connection to the host's service, e.g. a mounted /dev/log or docker.sock",
    ),
    (
        &["Can't dump half of stream unix connection"],
        "a Unix socket is connected to a process outside of the container",
        "close the connection to the host's service before moving",
    ),
    (
        &["Unix socket", "without peer"],
        "a Unix socket has lost its peer or has it in another namespace",
        "close the connection to the host's service before moving",
    ),
    (
        &["unreachable peer"],
        "a Unix socket has its peer in another namespace",
        "close the connection to the host's service before moving",
    ),
    (&["The socket has data to read"], "a netlink socket has unread messages", "try again"),
    (&["Some file locks are hold by dumping tasks"], "the application holds file locks", "allow file locks"),
    (
        &["Unresolved lock found"],
        "a file lock is shared with a process outside of the container",
        "stop the process outside that holds the lock",
    ),
    (
        &["Can't dump ghost file", "increase limit"],
        "a deleted file that is still open is too large",
        "let the application close it, e.g. by reopening its logs",
    ),
    (
        &["Can't create link remap", "link-remap"],
        "a deleted file has another name and is still open",
        "let the application close the file, e.g. by restarting it",
    ),
    (
        &["Can't lookup mount=", "path="],
        "a file on a mount outside of the container is open",
        "standard streams must be pipes or /dev/null, and no host file may be passed to the container",
    ),
    (
        &["Unaccessible path opened"],
        "an open file was replaced under its name",
        "let the application reopen it",
    ),
    (&["Open files on overmounted mounts"], "a file is open below a covered mount", "unmount what covers it"),
    (
        &["doesn't have a proper root mount"],
        "a mount was made that the container's configuration does not know",
        "declare it as a volume",
    ),
    (
        &["unsupported id"],
        "a network or FUSE file system is mounted in the container",
        "declare it as a volume instead",
    ),
    (&["has unreachable sharing"], "a mount shares its changes with the host", "make the mount private"),
    (
        &["No mapping for", "mountpoint"],
        "a bind mount of the container is missing at the destination",
        "the same volumes and the same runtime are needed on both hosts",
    ),
    (&["tar: unrecognized option"], "CRIU needs GNU tar", "install GNU tar on this host"),
    (
        &["Can't dump tmpfs content"],
        "a tmpfs of the container could not be saved",
        "install GNU tar, or free memory",
    ),
    (
        &["fsnotify: Can't dump that handle"],
        "a file is watched on a file system where CRIU cannot find it again",
        "use a newer CRIU, or turn the watch off",
    ),
    (
        &["Unseizable non-zombie"],
        "a process is traced by a debugger or stuck",
        "detach the debugger or strace",
    ),
    (
        &["Unable to freeze cgroup"],
        "the processes do not stop",
        "a process waits in the kernel (state D); check its storage",
    ),
    (
        &["Timeout reached. Try to interrupt"],
        "the processes do not stop",
        "a process waits in the kernel (state D); check its storage",
    ),
    (
        &["A session leader of", "outside of its pid namespace"],
        "a process was started in the container from outside (exec)",
        "end the exec session",
    ),
    (&["Can't dump nested"], "the container contains containers", "nested namespaces cannot be moved"),
    (&["nested time namespace"], "the container contains containers", "nested namespaces cannot be moved"),
    (
        &["SysVIPC shmem map", "IPC ns"],
        "shared memory of the host is used",
        "give the container its own IPC namespace",
    ),
    (
        &["has rseq but kernel lacks get_rseq_conf"],
        "this kernel is too old for the application's C library",
        "use kernel 5.13 or newer, or start it with GLIBC_TUNABLES=glibc.pthread.rseq=0",
    ),
    (&["Individually stopped threads not supported"], "a single thread is stopped or traced", "resume it"),
    (
        &["has uprobes vma"],
        "a tracing tool has put probes into the application",
        "end the tracing and restart the application",
    ),
    (&["Locking network failed"], "the firewall tools are missing", "install iptables or nftables"),
    (&["execvp(\"iptables-restore\""], "the firewall tools are missing", "install iptables or nftables"),
    (
        &["Tracking memory is not available"],
        "this kernel cannot track memory changes",
        "move without pre-copy",
    ),
    (&["Can't connect to server"], "CRIU cannot reach the agent's page server", "see the agent's log"),
    (&["The page server doesn't answer"], "CRIU cannot reach the agent's page server", "see the agent's log"),
    (
        &["Can't bind inet socket back", "Cannot assign requested address"],
        "an address of the container is missing at the destination",
        "the address is absent or still tentative in the new network namespace",
    ),
    (
        &["Can't connect inet socket back"],
        "a connection has no route at the destination, or its port is taken",
        "compare the routes in the container's network namespace",
    ),
    (
        &["Can't repair options"],
        "a connection was disturbed while it was restored",
        "try again; the network must stay closed until the container runs",
    ),
    (
        &["TCP", "Operation not permitted"],
        "a connection was disturbed while it was restored",
        "try again; the network must stay closed until the container runs",
    ),
    (&["has bad size"], "a file differs between the hosts", "it changed after it was copied; try again"),
    (
        &["bad build-ID"],
        "a program or library differs between the hosts",
        "the root file systems differ; try again",
    ),
    (
        &["has bad mode"],
        "a file's permissions differ between the hosts",
        "it changed after it was copied; try again",
    ),
    (
        &["Can't open file", "on restore"],
        "a file is missing at the destination",
        "a file or volume was not copied; try again",
    ),
    (
        &["Can't move into", "cgroup.procs"],
        "the container's cgroup cannot be entered",
        "check the limits and the cgroup set-up of the destination",
    ),
    (
        &["can't write lsm profile"],
        "the security profile of the container is missing at the destination",
        "load the AppArmor or SELinux profile there",
    ),
    (
        &["CPU capabilities do not match"],
        "the processors differ",
        "choose a destination with the same or a newer processor",
    ),
    (
        &["unsupported bits"],
        "the processors differ",
        "choose a destination with the same or a newer processor",
    ),
    (
        &["xsave size mismatch"],
        "the processors differ",
        "choose a destination with the same processor features",
    ),
    (
        &["xsave area present"],
        "the processors differ",
        "choose a destination with the same processor features",
    ),
    (
        &["Can't restore", "mapping with", "fff4"],
        "there is not enough memory at the destination",
        "raise the memory limit or free memory there",
    ),
    (
        &["Unable to find an external netns"],
        "the network namespace is missing at the destination",
        "see the agent's log",
    ),
    (&["connect to lazy-pages.socket failed"], "the page filler does not listen", "see the agent's log"),
    (
        &["Need to set the --tcp-close options"],
        "the images were made without connections",
        "restore them the same way",
    ),
    (
        &["Not supported images version"],
        "the images come from a newer CRIU",
        "upgrade CRIU at the destination",
    ),
    (
        &["Failed unpacking object"],
        "the images come from a newer CRIU or are damaged",
        "upgrade CRIU at the destination",
    ),
    (&["Magic doesn't match"], "the images are damaged", "try again"),
    (&["Unexpected EOF on"], "the images are incomplete", "try again"),
    (&["No space left on device"], "no space is left", "free memory-backed storage or disk"),
    (
        &["Aborting restore due to post-restore script"],
        "the restore was called off while it was held",
        "the reason is in the migration's own log",
    ),
    (
        &["vdso: Unexpected rt vDSO area bounds"],
        "this CRIU is too old for the kernel",
        "install CRIU 4.2 or newer",
    ),
    (&["Can't get 1:16 opt"], "this CRIU is too old for the kernel", "install CRIU 4.2 or newer"),
];

/// Error lines that do no harm.
const HARMLESS: &[&str] = &["rlimit: Can't setup RLIMIT_NOFILE for self", "util.c:657): exited, status="];

/// Finds the first line of a log with a known cause: among errors, else among all lines.
pub fn explain(log: &str) -> Option<Explanation> {
    let known = |line: &str| TABLE.iter().find(|(parts, ..)| parts.iter().all(|p| line.contains(p)));
    let explain = |line: &str| {
        known(line).map(|(_, cause, advice)| Explanation {
            cause: (*cause).to_owned(),
            advice: (*advice).to_owned(),
            line: shorten(line),
        })
    };
    log.lines()
        .filter(|l| is_error(l))
        .find_map(explain)
        .or_else(|| log.lines().filter(|l| !harmless(l)).find_map(explain))
}

/// The first error lines of a log, without times and harmless ones. At most five, each at most 400 characters.
pub fn error_lines(log: &str) -> Vec<String> {
    log.lines().filter(|l| is_error(l)).take(MAX_LINES).map(shorten).collect()
}

/// Reads the end of a log; invalid UTF-8 is replaced.
pub fn read_log(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn harmless(line: &str) -> bool {
    HARMLESS.iter().any(|h| line.contains(h))
}

fn is_error(line: &str) -> bool {
    line.contains("Error (") && !harmless(line)
}

fn shorten(line: &str) -> String {
    // "(00.123456)   1: Error (criu/file.c:12): text" loses the time only.
    let text = line.trim();
    let text = match text.strip_prefix('(').and_then(|t| t.split_once(')')) {
        Some((time, rest)) if time.bytes().all(|b| b.is_ascii_digit() || b == b'.') => rest.trim(),
        _ => text,
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_its_own_text_and_is_not_shadowed() {
        for (parts, cause, advice) in TABLE {
            let line = format!("(00.000001)    12: Error (criu/x.c:1): {}", parts.join(" x "));
            let found = explain(&line).unwrap_or_else(|| panic!("{parts:?}"));
            assert_eq!((found.cause.as_str(), found.advice.as_str()), (*cause, *advice), "{parts:?}");
        }
    }

    #[test]
    fn takes_the_first_error_and_not_the_harmless_one() {
        let log = "(00.001663) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
            (00.010000) Warn  (criu/x.c:1): In-flight connection (l) for 5\n\
            (00.020000)      1: Error (criu/files.c:12): File usr/bin/x has bad size 5 (expect 6)\n\
            (00.030000) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
        let found = explain(log).unwrap();
        assert_eq!(found.line, "1: Error (criu/files.c:12): File usr/bin/x has bad size 5 (expect 6)");
        assert_eq!(error_lines(log).len(), 2);
    }

    #[test]
    fn io_uring_is_named() {
        let log = "(00.1) Error (criu/proc_parse.c:102): Unknown shit 600 (anon_inode:[io_uring])";
        assert!(explain(log).unwrap().cause.contains("io_uring"));
    }

    #[test]
    fn unknown_text_has_no_explanation() {
        assert_eq!(explain("(00.1) Error (x): something new"), None);
        assert_eq!(error_lines("(00.1) Error (x): something new"), ["Error (x): something new"]);
        assert_eq!(explain(""), None);
    }
}
