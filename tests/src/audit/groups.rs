//! cgroups of a host that are frozen, or empty where a container should be.

use std::fs;
use std::path::Path;

use super::{Kind, Report};
use crate::cgroup;
use crate::error::Result;
use crate::host::Host;

/// Groups that hold the groups of containers, and stay.
const PARENTS: [&str; 6] =
    ["tranship", "tranship-conmon", "libpod_parent", "machine.slice", "system.slice", "user.slice"];

/// `populated` and `frozen` of cgroup.events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Events {
    populated: bool,
    frozen: bool,
}

fn parse_events(text: &str) -> Events {
    let is = |key: &str| text.lines().any(|line| line.strip_prefix(key).is_some_and(|v| v.trim() == "1"));
    Events { populated: is("populated "), frozen: is("frozen ") }
}

fn events(dir: &Path) -> Option<Events> {
    fs::read_to_string(dir.join("cgroup.events")).ok().map(|text| parse_events(&text))
}

pub(super) fn check(host: &Host, report: &mut Report) -> Result<()> {
    let top = cgroup::v2_mount()?.join(host.cgroup());
    let name = |dir: &Path| format!("/{}", dir.strip_prefix(&top).unwrap_or(dir).display());
    for dir in cgroup::tree(&top) {
        // Groups inside a frozen one are frozen with it; the one that was told is named.
        let told = fs::read_to_string(dir.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1");
        if told {
            let done = if events(&dir).is_some_and(|e| e.frozen) { "frozen" } else { "told to freeze" };
            report.add(Kind::FrozenCgroup, name(&dir), done);
        }
    }
    for dir in children(&top) {
        let file_name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if file_name == cgroup::INIT_GROUP {
            continue;
        }
        let groups = if PARENTS.contains(&file_name) { children(&dir) } else { vec![dir] };
        for group in groups {
            if events(&group).is_some_and(|e| !e.populated) {
                report.add(Kind::EmptyCgroup, name(&group), "no process is in it");
            }
        }
    }
    Ok(())
}

fn children(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        assert_eq!(parse_events("populated 1\nfrozen 0\n"), Events { populated: true, frozen: false });
        assert_eq!(parse_events("populated 0\nfrozen 1\n"), Events { populated: false, frozen: true });
    }
}
