//! What this host can do: versions of the programs, and whether CRIU works on this kernel.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{Command, CommandError, find};

/// The oldest CRIU that works on current kernels with TCP.
pub const MIN_CRIU: Version = Version(4, 2, 0);

/// Features asked for one by one, with `criu check --feature`.
const FEATURES: &[&str] = &["mem_dirty_track", "uffd-noncoop", "timens", "pagemap_scan", "tcp_half_closed"];

/// A version of three numbers; missing ones are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Finds the first version in a text: digits with dots.
    pub fn find(text: &str) -> Option<Version> {
        text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
            let mut parts = word.split('.').map(|p| p.parse::<u32>().ok());
            let (major, minor) = (parts.next()??, parts.next()??);
            Some(Version(major, minor, parts.next().flatten().unwrap_or(0)))
        })
    }
}

/// Names or paths of the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// criu.
    pub criu: String,
    /// runc.
    pub runc: String,
    /// conmon.
    pub conmon: String,
}

/// Whether `criu check` was content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOutcome {
    /// It was.
    pub ok: bool,
    /// What it said, one line.
    pub message: String,
}

/// What this host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapabilities {
    /// CRIU, if installed.
    pub criu_version: Option<Version>,
    /// Where it is.
    pub criu_path: Option<PathBuf>,
    /// runc, if installed.
    pub runc_version: Option<Version>,
    /// conmon, if installed.
    pub conmon_version: Option<Version>,
    /// Release of the kernel.
    pub kernel: String,
    /// `criu check`.
    pub check: CheckOutcome,
    /// Optional features of CRIU that work here.
    pub features: Vec<String>,
    /// GNU tar is installed; CRIU needs it for tmpfs.
    pub gnu_tar: bool,
    /// The cgroup tree is of version 2.
    pub cgroup2: bool,
}

impl HostCapabilities {
    /// Why no container can be moved from or to this host; empty when one can. Each is a sentence with advice.
    pub fn obstacles(&self) -> Vec<String> {
        let mut list = Vec::new();
        match self.criu_version {
            None => list.push("criu is not installed; install CRIU 4.2 or newer".to_owned()),
            Some(v) if v < MIN_CRIU => {
                list.push(format!("criu {v} is too old; install CRIU {MIN_CRIU} or newer"))
            }
            Some(_) if !self.check.ok => {
                list.push(format!("criu does not work on kernel {}: {}", self.kernel, self.check.message))
            }
            Some(_) => {}
        }
        if self.runc_version.is_none() {
            list.push("runc is not installed; install runc 1.1 or newer".to_owned());
        }
        if self.conmon_version.is_none() {
            list.push("conmon is not installed; install conmon 2.1 or newer".to_owned());
        }
        if !self.gnu_tar {
            list.push("GNU tar is not installed; criu needs it to save a container's tmpfs".to_owned());
        }
        if !self.cgroup2 {
            list.push(
                "/sys/fs/cgroup is not a cgroup version 2 tree; boot with systemd.unified_cgroup_hierarchy=1"
                    .to_owned(),
            );
        }
        list
    }
}

async fn version(program: &str, needle: &str) -> Option<(Version, String)> {
    let output = Command::new(program).arg("--version").timeout(Duration::from_secs(10)).run().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|l| l.contains(needle))?;
    Version::find(line).map(|v| (v, text))
}

/// Looks at this host. Never fails: what is missing is said in the answer. Takes about half a second.
pub async fn probe(programs: &Programs) -> HostCapabilities {
    let (criu, runc, conmon, tar, check) = tokio::join!(
        version(&programs.criu, "Version:"),
        version(&programs.runc, "runc version"),
        version(&programs.conmon, "conmon version"),
        version("tar", "GNU tar"),
        check(&programs.criu, None),
    );
    let mut features = Vec::new();
    if check.ok {
        for feature in FEATURES {
            if self::check(&programs.criu, Some(feature)).await.ok {
                features.push((*feature).to_owned());
            }
        }
    }
    HostCapabilities {
        criu_path: criu.as_ref().and_then(|_| find(&programs.criu)),
        criu_version: criu.map(|c| c.0),
        runc_version: runc.map(|c| c.0),
        conmon_version: conmon.map(|c| c.0),
        kernel: nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        check,
        features,
        gnu_tar: tar.is_some(),
        cgroup2: std::path::Path::new("/sys/fs/cgroup/cgroup.procs").exists(),
    }
}

async fn check(criu: &str, feature: Option<&str>) -> CheckOutcome {
    let mut command = Command::new(criu).arg("check").timeout(Duration::from_secs(30));
    if let Some(feature) = feature {
        command = command.arg("--feature").arg(feature);
    }
    let last = |text: &str| {
        text.lines()
            .rev()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("no message")
            .trim()
            .chars()
            .take(300)
            .collect()
    };
    match command.output().await {
        Ok(output) => {
            let ok = output.status.success();
            let errors = super::error_lines(&output.stderr);
            let message = match errors.first() {
                Some(line) if !ok => line.clone(),
                _ if ok => last(&String::from_utf8_lossy(&output.stdout)),
                _ => last(&output.stderr),
            };
            CheckOutcome { ok, message }
        }
        Err(e @ CommandError::Start { .. }) if e.is_missing() => {
            CheckOutcome { ok: false, message: "criu is not installed".to_owned() }
        }
        Err(e) => CheckOutcome { ok: false, message: e.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_versions() {
        assert_eq!(Version::find("Version: 4.2.1"), Some(Version(4, 2, 1)));
        assert_eq!(Version::find("runc version 1.3.6+ds1"), Some(Version(1, 3, 6)));
        assert_eq!(Version::find("conmon version 2.1.13"), Some(Version(2, 1, 13)));
        assert_eq!(Version::find("Version: 4.2"), Some(Version(4, 2, 0)));
        assert_eq!(Version::find("none. at 5 all"), None);
        assert!(Version(4, 1, 1) < MIN_CRIU && Version(4, 2, 0) >= MIN_CRIU);
    }

    #[tokio::test]
    async fn a_bare_host_is_described_and_not_an_error() {
        let none = "/nonexistent/program".to_owned();
        let caps = probe(&Programs { criu: none.clone(), runc: none.clone(), conmon: none }).await;
        assert!(!caps.check.ok);
        assert!(caps.obstacles().len() >= 3, "{:?}", caps.obstacles());
    }
}
