//! Containers as the OCI runtimes know them: state directories of runc and crun.

use std::fs;
use std::path::PathBuf;

use super::processes::Process;
use super::{AuditOptions, Kind, Report, Snapshot};
use crate::error::{LabError, Result};
use crate::host::Host;

/// Where runtimes keep their state inside a host.
const ROOTS: [&str; 4] = ["/run/runc", "/run/tranship/runc", "/run/crun", "/run/tranship/crun"];

/// A state directory of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) id: String,
    /// Inside the host.
    pub(super) dir: PathBuf,
    /// Whether its first process runs.
    pub(super) live: bool,
}

/// First process of a container and its start time, as the runtime recorded them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Init {
    pid: i32,
    start: u64,
}

pub(super) fn read(host: &Host, processes: &[Process]) -> Result<Vec<Container>> {
    let mut containers = Vec::new();
    for root in ROOTS {
        let Ok(entries) = fs::read_dir(host.path(root)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.map_err(LabError::io("list", root))?;
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let init = ["state.json", "status"]
                .iter()
                .find_map(|file| fs::read(entry.path().join(file)).ok())
                .and_then(|text| parse_state(&text));
            let live = init.is_some_and(|init| {
                processes.iter().any(|p| p.pid == init.pid && p.start == init.start && !p.zombie)
            });
            let id = entry.file_name().to_string_lossy().into_owned();
            containers.push(Container { dir: PathBuf::from(root).join(&id), id, live });
        }
    }
    Ok(containers)
}

/// runc's `state.json` has `init_process_pid`, crun's `status` has `pid`, each with a start time.
fn parse_state(text: &[u8]) -> Option<Init> {
    let state: serde_json::Value = serde_json::from_slice(text).ok()?;
    let number = |names: [&str; 2]| names.iter().find_map(|name| state.get(name)?.as_u64());
    Some(Init {
        pid: i32::try_from(number(["init_process_pid", "pid"])?).ok()?,
        start: number(["init_process_start", "process-start-time"])?,
    })
}

pub(super) fn check(host: &Host, snapshot: &Snapshot, options: AuditOptions, report: &mut Report) {
    for container in snapshot.containers.iter().filter(|c| !c.live) {
        let kept = host.path("/var/lib/tranship/containers").join(&container.id);
        if options.allow_stopped && kept.exists() {
            continue;
        }
        report.add(
            Kind::StaleRuntimeState,
            container.dir.display().to_string(),
            "the container's first process does not run",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_both_runtimes_are_read() {
        let runc = br#"{"id":"web","init_process_pid":35,"init_process_start":1234,"config":{}}"#;
        assert_eq!(parse_state(runc), Some(Init { pid: 35, start: 1234 }));
        let crun = br#"{"pid":36,"process-start-time":99,"bundle":"/x"}"#;
        assert_eq!(parse_state(crun), Some(Init { pid: 36, start: 99 }));
        assert_eq!(parse_state(b"{"), None);
        assert_eq!(parse_state(br#"{"pid":-1,"process-start-time":9}"#), None);
    }
}
