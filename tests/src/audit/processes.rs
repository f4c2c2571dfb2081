//! Processes of a host, and those that should have ended.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Kind, Report, Snapshot};
use crate::error::{LabError, Result};
use crate::host::Host;

/// One process of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number inside the host.
    pub(super) pid: i32,
    pub(super) comm: String,
    pub(super) args: Vec<String>,
    pub(super) zombie: bool,
    /// Start time in clock ticks after boot.
    pub(super) start: u64,
    /// v2 cgroup relative to the host's root, such as `/tranship/web`.
    pub(super) cgroup: String,
    /// Inode of its network namespace; 0 when it has none any more.
    pub(super) netns: u64,
}

/// Reads all processes of the host; those that end meanwhile are left out.
///
/// The whole process table is searched: cgroup.procs does not list zombies.
pub(super) fn read(host: &Host) -> Result<Vec<Process>> {
    let root = format!("/{}", host.cgroup());
    let entries = fs::read_dir("/proc").map_err(LabError::io("list", "/proc"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| read_one(pid, &root))
        .collect())
}

fn read_one(pid: i32, root: &str) -> Option<Process> {
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let text = |name: &str| file(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let cgroup = parse_cgroup(&text("cgroup")?, root)?;
    let (comm, state, start) = parse_stat(&text("stat")?)?;
    Some(Process {
        pid: parse_inner_pid(&text("status")?)?,
        comm,
        zombie: state == "Z",
        start,
        args: file("cmdline")?
            .split(|b| *b == 0)
            .filter(|arg| !arg.is_empty())
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
        cgroup,
        netns: fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |m| m.ino()),
    })
}

/// Name, state and start time out of proc_pid_stat(5).
fn parse_stat(stat: &str) -> Option<(String, String, u64)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let comm = stat.get(open + 1..close)?.to_owned();
    let mut fields = stat.get(close + 1..)?.split_whitespace();
    let state = fields.next()?.to_owned();
    Some((comm, state, fields.nth(18)?.parse().ok()?))
}

/// The number a process has in its host: the second of `NSpid`, the first being the machine's.
fn parse_inner_pid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn parse_cgroup(text: &str, root: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // The kernel adds this to the path of a group that was removed under a zombie.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let inside = path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    Some(if inside.is_empty() { "/".into() } else { inside.into() })
}

/// Programs that only run during a migration or a start.
const PASSING: [&str; 2] = ["criu", "runc"];

pub(super) fn check(snapshot: &Snapshot, report: &mut Report) {
    let running = snapshot.running();
    for process in &snapshot.processes {
        let Process { pid, comm, args, .. } = process;
        let what = format!("process {pid} ({comm})");
        if process.zombie {
            // Inside a container it is the container's own business.
            if process.cgroup == "/init" {
                report.add(Kind::Zombie, what, "it has ended and nobody has waited for it");
            }
            continue;
        }
        let line = args.join(" ");
        if is_passing(comm, args) {
            report.add(Kind::Process, what, line);
        } else if comm == "conmon" {
            let id = conmon_container(args);
            if !id.is_some_and(|id| running.contains(id)) {
                let id = id.unwrap_or("?");
                report.add(
                    Kind::ConmonWithoutContainer,
                    what,
                    format!("its container {id} does not run: {line}"),
                );
            }
        } else if let Some(id) = container_of(&process.cgroup).filter(|id| !running.contains(id)) {
            report.add(
                Kind::ProcessWithoutContainer,
                what,
                format!("it is in cgroup {} and no runtime knows {id}: {line}", process.cgroup),
            );
        }
    }
}

fn is_passing(comm: &str, args: &[String]) -> bool {
    let program = args.first().map_or("", |arg| arg.rsplit('/').next().unwrap_or(arg));
    // `runc init` calls itself runc:[2:INIT]; crun's name is cut from its own `crun`.
    PASSING.contains(&comm)
        || (comm.starts_with("runc:[") && args.get(1).is_some_and(|arg| arg == "init"))
        || (comm == "crun" && program == "crun")
        || (program == "transhipd" && args.get(1).is_some_and(|arg| arg == "hook" || arg == "fill"))
}

/// The container a conmon was started for: `-c ID`, `--cid ID` or `--cid=ID`.
fn conmon_container(args: &[String]) -> Option<&str> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "-c" || arg == "--cid" {
            return args.next().map(String::as_str);
        }
        if let Some(id) = arg.strip_prefix("--cid=") {
            return Some(id);
        }
    }
    None
}

/// The container whose cgroup this is or is in.
fn container_of(cgroup: &str) -> Option<&str> {
    cgroup.strip_prefix("/tranship/")?.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let rest = (4..=21).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("77 (a) b (c) S {rest} 4242 0 0");
        assert_eq!(parse_stat(&stat), Some(("a) b (c".into(), "S".into(), 4242)));
        assert_eq!(parse_stat("77 (a"), None);
    }

    #[test]
    fn the_inner_number_is_the_hosts_not_the_containers() {
        assert_eq!(parse_inner_pid("Name:\tx\nNSpid:\t4000\t35\t1\n"), Some(35));
        assert_eq!(parse_inner_pid("NSpid:\t4000\n"), None);
    }

    #[test]
    fn groups_are_relative_to_the_host() {
        let text = "4:memory:/tl-lab/host-a\n0::/tl-lab/host-a/tranship/web/sub (deleted)\n";
        assert_eq!(parse_cgroup(text, "/tl-lab/host-a").as_deref(), Some("/tranship/web/sub"));
        assert_eq!(parse_cgroup("0::/tl-lab/host-a\n", "/tl-lab/host-a").as_deref(), Some("/"));
        assert_eq!(parse_cgroup("0::/tl-lab/host-ab/init\n", "/tl-lab/host-a"), None);
        assert_eq!(parse_cgroup("0::/elsewhere\n", "/tl-lab/host-a"), None);
        assert_eq!(container_of("/tranship/web/sub"), Some("web"));
        assert_eq!(container_of("/init"), None);
    }

    #[test]
    fn passing_programs_are_known_by_name() {
        assert!(is_passing("criu", &args("criu swrk 4")));
        assert!(is_passing("runc:[2:INIT]", &args("runc init")));
        assert!(is_passing("transhipd", &args("/usr/local/bin/transhipd hook pre")));
        assert!(!is_passing("transhipd", &args("transhipd --config x")));
        assert!(!is_passing("redis-server", &args("redis-server *:6379")));
    }

    #[test]
    fn the_container_of_a_conmon_is_read_from_its_arguments() {
        assert_eq!(conmon_container(&args("conmon -n x -c web -u y")), Some("web"));
        assert_eq!(conmon_container(&args("conmon --cid=web")), Some("web"));
        assert_eq!(conmon_container(&args("conmon -c")), None);
    }
}
