//! What a lab remembers of itself: `state.json`, and the machine-wide sysctls it changed.
//!
//! `down` does not need either file to find the lab's objects (see `names`); the state tells other
//! commands which hosts there are and which process is the first of each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};
use crate::names::{LabName, base_dir};

/// One host, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostState {
    /// `host-a`, ...
    pub name: String,
    /// 0 for `host-a`.
    pub index: usize,
    /// First process, as seen from the machine; 0 until it exists.
    pub init_pid: i32,
    /// Its start time in clock ticks after boot, so that a reused process id is noticed.
    pub init_start: u64,
}

/// How far the lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `up` has not finished, or was killed.
    Building,
    /// All hosts run.
    Up,
}

/// Contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabState {
    /// The lab.
    pub name: LabName,
    /// How far it is.
    pub phase: Phase,
    /// Whether agents were started.
    pub agents: bool,
    /// blake3 of the programs under test, by name; empty without agents.
    pub programs: BTreeMap<String, String>,
    /// Its hosts, in order.
    pub hosts: Vec<HostState>,
}

impl LabState {
    /// Reads it; `None` when there is no such lab.
    pub fn load(name: &LabName) -> Result<Option<Self>> {
        let path = name.state_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(LabError::io("read", &path)(e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| LabError::Malformed { path, reason: e.to_string() })
    }

    /// Writes it in one step.
    pub fn save(&self) -> Result<()> {
        write_json(&self.name.state_file(), self)
    }

    /// Whether `up` finished and every host still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.phase == Phase::Up && self.hosts.iter().all(|h| start_time(h.init_pid) == Some(h.init_start))
    }
}

/// Start time of a process in clock ticks after boot; `None` when it does not run.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in brackets, may hold blanks and brackets.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    // Field 22 of proc(5); the state was the third.
    fields.nth(18)?.parse().ok()
}

/// Writes a JSON file so that readers see the old or the new contents, never half.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| LabError::Malformed { path: path.to_path_buf(), reason: e.to_string() })?;
    text.push(b'\n');
    let next = path.with_extension("next");
    let mut file = File::create(&next).map_err(LabError::io("create", &next))?;
    file.write_all(&text).and_then(|()| file.sync_data()).map_err(LabError::io("write", &next))?;
    fs::rename(&next, path).map_err(LabError::io("replace", path))
}

/// Held while labs are made or removed: one lock for all labs of the machine.
#[derive(Debug)]
pub struct Lock {
    _dir: File,
}

impl Lock {
    /// Waits for the lock. It is the base directory itself, so that no lock file stays behind.
    pub fn take() -> Result<Self> {
        let base = base_dir();
        loop {
            fs::create_dir_all(&base).map_err(LabError::io("create", &base))?;
            let dir = File::open(&base).map_err(LabError::io("open", &base))?;
            dir.lock().map_err(LabError::io("lock", &base))?;
            // The last lab's removal takes the directory away under the lock.
            let held = dir.metadata().map_err(LabError::io("look at", &base))?;
            match fs::metadata(&base) {
                Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Self { _dir: dir });
                }
                _ => {}
            }
        }
    }
}

const PIPE_MAX: u64 = 256 << 20;
const SOCKET_MAX: u64 = 8 << 20;

fn wanted() -> [(&'static str, bool, u64); 4] {
    // Name, whether more is better, value. CRIU's lazy pages need large pipes, QUIC large buffers.
    [
        ("fs/pipe-user-pages-soft", false, 0),
        ("fs/pipe-max-size", true, PIPE_MAX),
        ("net/core/rmem_max", true, SOCKET_MAX),
        ("net/core/wmem_max", true, SOCKET_MAX),
    ]
}

fn sysctl_record() -> PathBuf {
    base_dir().join("sysctl.json")
}

/// Sets the machine-wide sysctls the lab needs, remembering what they were. Under the lock.
pub fn set_sysctls(_: &Lock) -> Result<Vec<String>> {
    let record = sysctl_record();
    let mut before: BTreeMap<String, String> = match fs::read(&record) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|e| LabError::Malformed { path: record.clone(), reason: e.to_string() })?,
        Err(_) => BTreeMap::new(),
    };
    let mut told = Vec::new();
    for (name, at_least, value) in wanted() {
        let path = Path::new("/proc/sys").join(name);
        let Ok(now) = fs::read_to_string(&path) else {
            continue;
        };
        let now = now.trim().to_owned();
        let Ok(number) = now.parse::<u64>() else {
            continue;
        };
        if number == value || (at_least && number > value) {
            continue;
        }
        before.entry(name.to_owned()).or_insert(now);
        write_json(&record, &before)?;
        fs::write(&path, value.to_string()).map_err(LabError::io("write", &path))?;
        told.push(format!("{}={value}", name.replace('/', ".")));
    }
    Ok(told)
}

/// Puts the sysctls back when no lab is left. Under the lock.
pub fn restore_sysctls(_: &Lock) -> Result<()> {
    let base = base_dir();
    let other_lab = fs::read_dir(&base)
        .map_err(LabError::io("list", &base))?
        .flatten()
        .any(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    if other_lab {
        return Ok(());
    }
    let record = sysctl_record();
    if let Ok(text) = fs::read(&record) {
        let before: BTreeMap<String, String> = serde_json::from_slice(&text)
            .map_err(|e| LabError::Malformed { path: record.clone(), reason: e.to_string() })?;
        for (name, value) in before {
            if wanted().iter().any(|(known, ..)| *known == name) {
                let path = Path::new("/proc/sys").join(name);
                fs::write(&path, value).map_err(LabError::io("write", &path))?;
            }
        }
        fs::remove_file(&record).map_err(LabError::io("remove", &record))?;
    }
    // Not empty when it holds something that is not the lab's.
    let _ = fs::remove_dir(&base);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_start_time_until_it_ends() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|t| t > 0));
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn a_state_survives_the_disk() {
        let state = LabState {
            name: LabName::new("x").unwrap(),
            phase: Phase::Building,
            agents: true,
            programs: BTreeMap::new(),
            hosts: vec![HostState { name: "host-a".into(), index: 0, init_pid: 7, init_start: 9 }],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_json(&path, &state).unwrap();
        let read: LabState = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, state);
        assert!(!state.alive());
        assert!(serde_json::from_str::<LabState>(r#"{"name":"a-b"}"#).is_err());
    }
}
