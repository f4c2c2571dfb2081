//! Mounts of a host that belong to no running container, and namespaces kept by mounts.

use std::fs;

use super::{Kind, Report, Snapshot};
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::teardown::unescape;

/// Where named network namespaces are kept.
const NETNS_DIRS: [&str; 2] = ["/run/tranship/netns", "/run/netns"];

/// One mount, as much of it as matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    root: String,
    point: String,
    kind: String,
}

/// A network namespace kept by a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptNetns {
    /// Inside the host.
    pub(super) path: String,
    pub(super) inode: u64,
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            Some(Mount {
                root: unescape(fields.next()?),
                point: unescape(fields.next()?),
                kind: after.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

/// `net:[4026531840]`
fn parse_netns(root: &str) -> Option<u64> {
    root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

pub(super) fn check(host: &Host, snapshot: &Snapshot, report: &mut Report) -> Result<Vec<KeptNetns>> {
    let path = format!("/proc/{}/mountinfo", host.init_pid());
    let text = fs::read_to_string(&path).map_err(LabError::io("read", &path))?;
    let mounts = parse(&text);
    let running = snapshot.running();
    let mut kept = Vec::new();
    for mount in &mounts {
        if let (Some(inode), "nsfs") = (parse_netns(&mount.root), mount.kind.as_str()) {
            kept.push(KeptNetns { path: mount.point.clone(), inode });
            if !snapshot.processes.iter().any(|p| p.netns == inode && !p.zombie) {
                report.add(Kind::StrayNetns, mount.point.clone(), format!("no process is in {}", mount.root));
            }
            continue;
        }
        if is_stray(&mount.point, |id| running.contains(id)) {
            report.add(
                Kind::StrayMount,
                mount.point.clone(),
                format!("{} with {} belongs to no running container", mount.kind, mount.root),
            );
        }
    }
    for dir in NETNS_DIRS {
        let Ok(entries) = fs::read_dir(host.path(dir)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
            if !kept.iter().any(|k| k.path == path) {
                report.add(Kind::StrayNetnsFile, path, "no namespace is bound to it");
            }
        }
    }
    Ok(kept)
}

fn is_stray(point: &str, runs: impl Fn(&str) -> bool) -> bool {
    if point.contains("criu") {
        return true;
    }
    // `ip netns add` and its kin make the directory a mount of its own.
    if NETNS_DIRS.contains(&point) {
        return false;
    }
    if let Some(rest) = point.strip_prefix("/var/lib/tranship/containers/") {
        return !rest.split('/').next().is_some_and(runs);
    }
    below(point, "/run/tranship") || below(point, "/var/lib/tranship")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_kept_namespaces_are_read() {
        let text = "\
29 1 0:66 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a
40 29 0:4 net:[4026532345] /run/tranship/netns/web rw shared:2 master:1 - nsfs nsfs rw
41 29 0:5 / /var/lib/tranship/containers/a\\040b/rootfs rw - tmpfs t rw
";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(parse_netns(&mounts[1].root), Some(4026532345));
        assert_eq!(mounts[2].point, "/var/lib/tranship/containers/a b/rootfs");
        assert_eq!(mounts[2].kind, "tmpfs");
    }

    #[test]
    fn only_mounts_of_running_containers_are_in_order() {
        let runs = |id: &str| id == "web";
        assert!(!is_stray("/var/lib/tranship/containers/web/rootfs", runs));
        assert!(is_stray("/var/lib/tranship/containers/old/rootfs", runs));
        assert!(is_stray("/run/tranship/images/1", runs));
        assert!(is_stray("/tmp/.criu.mntns.x", runs));
        assert!(!is_stray("/var/lib/tranship", runs));
        assert!(!is_stray("/run/tranship/netns", runs));
        assert!(!is_stray("/run/transhipper/x", runs));
    }
}
