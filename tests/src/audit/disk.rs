//! Files that a migration leaves only while it runs.

use std::fs;
use std::path::Path;

use super::{AuditOptions, Kind, Report, Snapshot};
use crate::error::{LabError, Result};
use crate::host::Host;

const TEMPORARY: [&str; 4] =
    ["/run/tranship/images", "/run/tranship/hooks", "/run/tranship/fills", "/var/lib/tranship/incoming"];
const CONTAINERS: &str = "/var/lib/tranship/containers";
/// Where conmon records how a container ended.
const EXITS: &str = "/run/tranship/exits";
/// More names than any root file system of the lab has.
const MAX_ENTRIES: usize = 2_000_000;

pub(super) fn check(
    host: &Host,
    snapshot: &Snapshot,
    options: AuditOptions,
    report: &mut Report,
) -> Result<()> {
    for dir in TEMPORARY {
        for name in names(&host.path(dir)) {
            report.add(Kind::TemporaryData, format!("{dir}/{name}"), "data of a migration");
        }
    }
    let running = snapshot.running();
    for name in names(&host.path(CONTAINERS)) {
        if !running.contains(name.as_str()) && !options.allow_stopped {
            report.add(
                Kind::ContainerNotRunning,
                format!("{CONTAINERS}/{name}"),
                "no runtime runs a container of this name",
            );
        }
    }
    for name in names(&host.path(EXITS)) {
        if !running.contains(name.as_str()) && !options.allow_stopped {
            report.add(
                Kind::TemporaryData,
                format!("{EXITS}/{name}"),
                "exit status of a container that does not run",
            );
        }
    }
    for top in [CONTAINERS, "/srv"] {
        let mut found = Vec::new();
        let mut left = MAX_ENTRIES;
        find_remaps(&host.path(top), &mut left, &mut found)?;
        for path in found {
            let inside = path.strip_prefix(host.path("/")).unwrap_or(&path).display().to_string();
            report.add(Kind::LinkRemap, format!("/{inside}"), "CRIU gave this name to a deleted file");
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

// Symbolic links are not followed; a directory that a running container removes meanwhile is no error.
fn find_remaps(top: &Path, left: &mut usize, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    let mut pending = vec![top.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            *left = left.checked_sub(1).ok_or_else(|| LabError::Invalid {
                what: format!("{} holds more than {MAX_ENTRIES} names", top.display()),
                hint: "the audit searches root file systems of the size of a container's".into(),
            })?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            } else if is_remap(&entry.file_name().to_string_lossy()) {
                found.push(entry.path());
            }
        }
    }
    Ok(())
}

/// CRIU's `create_link_remap` names them `link_remap.%d`.
fn is_remap(name: &str) -> bool {
    name.strip_prefix("link_remap.").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaps_are_found_below_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("link_remap.7"), "").unwrap();
        fs::write(deep.join("link_remap.txt"), "").unwrap();
        std::os::unix::fs::symlink("/", deep.join("root")).unwrap();
        let mut found = Vec::new();
        find_remaps(dir.path(), &mut 10, &mut found).unwrap();
        assert_eq!(found, [deep.join("link_remap.7")]);
        assert!(find_remaps(dir.path(), &mut 2, &mut found).is_err());
    }
}
