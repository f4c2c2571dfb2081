//! conmon, the monitor of one container: it starts the runtime, keeps the container's output, and records
//! its exit status. It outlives the agent, so it lives in a cgroup of its own.
//!
//! Called as podman calls it (libpod/oci_conmon_common.go): a start pipe that it waits on until it is in
//! its cgroup, and a sync pipe on which it tells the container's pid or why there is none.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tranship_proto::ids::ContainerName;

use super::error::EngineError;
use super::paths::Dirs;
use crate::command::{Command, find};
use crate::runtime::Cgroup;

/// Size at which conmon starts the log anew, in bytes.
const LOG_SIZE: u64 = 16 << 20;
/// What conmon may say, in bytes.
const MAX_MESSAGE: u64 = 256 * 1024;
/// conmon forks and returns at once.
const START: Duration = Duration::from_secs(20);

/// How conmon is called on this host.
#[derive(Clone, Debug)]
pub(super) struct Conmon {
    pub program: String,
    pub runtime: (PathBuf, Vec<String>),
    pub exits: PathBuf,
    /// Directory of the cgroup tree that monitors live in.
    pub cgroup_parent: PathBuf,
}

/// A restore instead of a start.
pub(super) struct RestoreArguments<'a> {
    pub image_dir: &'a Path,
    pub work_dir: &'a Path,
    pub criu_config: &'a Path,
    /// `PATH` of the runtime.
    pub search_path: &'a OsStr,
    pub lazy: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(alias = "pid")]
    data: i32,
    #[serde(default)]
    message: String,
}

/// The end of the sync pipe.
#[derive(Debug)]
pub(super) struct SyncPipe {
    name: ContainerName,
    pipe: pipe::Receiver,
    text: Vec<u8>,
}

impl SyncPipe {
    /// The container's pid, or why there is none. Cancel safe: what was read is kept.
    pub(super) async fn pid(&mut self) -> Result<i32, EngineError> {
        let failed = |message: String| EngineError::Monitor { name: self.name.to_string(), message };
        loop {
            if self.text.contains(&b'\n') || self.text.len() as u64 >= MAX_MESSAGE {
                break;
            }
            match self.pipe.read_buf(&mut self.text).await {
                Ok(0) if self.text.is_empty() => {
                    return Err(failed("its monitor ended without a word".to_owned()));
                }
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(failed(e.to_string())),
            }
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        match serde_json::from_str::<Message>(text.trim()) {
            Ok(m) if m.data > 0 => Ok(m.data),
            Ok(m) => Err(failed(readable(&m.message))),
            // conmon does not always escape what the runtime said.
            Err(_) => Err(failed(readable(&text))),
        }
    }
}

/// The last error of the runtime's log lines, else all of the text, shortened.
fn readable(text: &str) -> String {
    let text = text.replace("\\\"", "\"").replace("\\n", "\n");
    let of =
        |line: &str| line.split_once("level=error msg=").map(|(_, m)| m.trim().trim_matches('"').to_owned());
    let found = text.lines().rev().find_map(of).unwrap_or_else(|| text.trim().to_owned());
    match found.as_str() {
        "" => "the runtime said nothing".to_owned(),
        all => all.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect(),
    }
}

impl Conmon {
    pub(super) fn cgroup(&self, name: &ContainerName) -> Cgroup {
        Cgroup::at(self.cgroup_parent.join(name.as_str()))
    }

    /// Starts the monitor, which creates or restores the container.
    pub(super) async fn start(
        &self,
        name: &ContainerName,
        dirs: &Dirs,
        restore: Option<RestoreArguments<'_>>,
    ) -> Result<SyncPipe, EngineError> {
        let what = || format!("start the monitor of container {name}");
        let io = |source| EngineError::Io { what: "make a pipe for", path: dirs.dir.clone(), source };
        let pipe_pair = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| io(e.into()));
        let (sync_read, sync_write) = pipe_pair()?;
        let (start_read, start_write) = pipe_pair()?;
        let cgroup = self.cgroup(name);
        cgroup.create()?;
        let program = find(&self.program).unwrap_or_else(|| self.program.clone().into());
        let mut command = Command::new(program)
            .args(["--api-version", "1"])
            .args(["--cid", name.as_str(), "--cuuid", name.as_str(), "--name", name.as_str()])
            .arg("--runtime")
            .arg(&self.runtime.0)
            .args(self.runtime.1.iter().flat_map(|a| ["--runtime-arg", a]))
            .arg("--bundle")
            .arg(dirs.bundle())
            .arg("--container-pidfile")
            .arg(dirs.pid_file())
            .arg("--conmon-pidfile")
            .arg(dirs.conmon_pid_file())
            .arg("--exit-dir")
            .arg(&self.exits)
            .arg("--log-path")
            .arg(format!("k8s-file:{}", dirs.log().display()))
            .args(["--log-size-max", &LOG_SIZE.to_string(), "--full-attach", "--log-level", "warning"])
            .timeout(START)
            .inherit("_OCI_SYNCPIPE", sync_write)
            .inherit("_OCI_STARTPIPE", start_read);
        if let Some(restore) = restore {
            command = command
                .arg("--restore")
                .arg(restore.image_dir)
                .env("CRIU_CONFIG_FILE", restore.criu_config)
                .env("PATH", restore.search_path);
            let work_dir = restore.work_dir.to_string_lossy().into_owned();
            // conmon names the bundle as work directory; the last one given counts.
            let options = [
                "--work-path",
                &work_dir,
                "--tcp-established",
                "--file-locks",
                "--manage-cgroups-mode",
                "ignore",
            ];
            for option in options.into_iter().chain(restore.lazy.then_some("--lazy-pages")) {
                command = command.arg("--runtime-opt").arg(option);
            }
        }
        let running = command.spawn().map_err(|source| EngineError::Command { what: what(), source })?;
        let moved = cgroup.add(running.pid());
        // Also when that failed: conmon must get its word or its end of file, and dies with the group.
        moved?;
        write_byte(start_write).map_err(io)?;
        let output = tokio::time::timeout(START, running.wait()).await;
        match output {
            Ok(Ok(output)) if output.status.success() => {}
            Ok(Ok(output)) => {
                let message = match output.stderr.trim() {
                    "" => format!("its monitor ended with {}", output.status),
                    text => readable(text),
                };
                return Err(EngineError::Monitor { name: name.to_string(), message });
            }
            Ok(Err(source)) => return Err(EngineError::Command { what: what(), source }),
            Err(_) => {
                return Err(EngineError::Deadline {
                    name: name.to_string(),
                    wanted: "monitored",
                    limit: START,
                });
            }
        }
        let pipe = receiver(sync_read).map_err(io)?;
        Ok(SyncPipe { name: name.clone(), pipe, text: Vec::new() })
    }

    /// Waits until the monitor of a dead container is gone and removes its cgroup; helps after `limit`.
    /// Blocks.
    pub(super) fn finish(&self, name: &ContainerName, limit: Duration) -> Result<(), EngineError> {
        let cgroup = self.cgroup(name);
        if cgroup.wait_empty(limit).is_err() {
            tracing::warn!(%name, "the monitor did not end with its container; killing it");
            cgroup.kill(Duration::from_secs(5))?;
        }
        Ok(cgroup.remove()?)
    }
}

fn write_byte(fd: OwnedFd) -> std::io::Result<()> {
    std::fs::File::from(fd).write_all(&[0])
}

fn receiver(fd: OwnedFd) -> std::io::Result<pipe::Receiver> {
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    pipe::Receiver::from_owned_fd(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(text: &str) -> Result<i32, EngineError> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        std::fs::File::from(write).write_all(text.as_bytes()).unwrap();
        let name = "web".parse().unwrap();
        SyncPipe { name, pipe: receiver(read).unwrap(), text: Vec::new() }.pid().await
    }

    #[tokio::test]
    async fn understands_conmon() {
        assert_eq!(said("{\"data\": 358}\n").await.unwrap(), 358);
        assert_eq!(said("{\"pid\": 358}").await.unwrap(), 358);
        let error = said("{\"data\": -1, \"message\": \"time=\\\"x\\\" level=error msg=\\\"criu failed: type RESTORE errno 0\\\"\\n\"}\n").await.unwrap_err();
        assert!(error.to_string().ends_with("criu failed: type RESTORE errno 0"), "{error}");
        assert!(said("").await.unwrap_err().to_string().contains("without a word"));
        assert!(said("{\"data\": -1, \"message\": \"bad \"quotes\" here\"}\n").await.is_err());
    }
}
