//! runc as the runtime. Its state lives in a directory of the agent's own (`--root`), so that podman's and
//! other users' containers are never mixed with ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{
    Cgroup, CheckpointReport, CheckpointRequest, Pages, Runtime, RuntimeError, RuntimeInfo, RuntimeState,
    RuntimeStatus,
};
use crate::command::{Command, CommandError, OnAbandon, find};
use crate::criu;

/// Time limit of short commands of runc.
const SHORT: Duration = Duration::from_secs(20);

/// Where runc is and where it keeps its state.
#[derive(Clone, Debug)]
pub struct RuncConfig {
    /// Program, looked up in the usual directories unless it is a path.
    pub program: String,
    /// `--root`: below the agent's run directory.
    pub root: PathBuf,
    /// Directory of the cgroup tree all containers live in, e.g. `/sys/fs/cgroup/tranship`.
    pub cgroup_parent: PathBuf,
}

/// [`Runtime`] by runc.
#[derive(Clone, Debug)]
pub struct Runc {
    config: RuncConfig,
}

#[derive(Deserialize)]
struct StateAnswer {
    status: String,
    #[serde(default)]
    pid: i32,
}

impl Runc {
    /// A runtime with its own state directory.
    pub fn new(config: RuncConfig) -> Self {
        Runc { config }
    }

    fn command(&self) -> Command {
        let program = find(&self.config.program).unwrap_or_else(|| self.config.program.clone().into());
        Command::new(program).arg("--root").arg(&self.config.root).timeout(SHORT)
    }

    async fn short(&self, what: &'static str, id: &str, args: &[&str]) -> Result<(), RuntimeError> {
        let run = self.command().args(args).arg(id).run().await;
        run.map(drop).map_err(|source| RuntimeError::Command { what, id: id.to_owned(), source })
    }

    async fn on_cgroup<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(Cgroup) -> Result<T, super::CgroupError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let cgroup = self.cgroup(id);
        let path = cgroup.dir().to_owned();
        match tokio::task::spawn_blocking(move || work(cgroup)).await {
            Ok(done) => Ok(done?),
            Err(e) => Err(RuntimeError::Io { what: "work on", path, source: std::io::Error::other(e) }),
        }
    }
}

impl Runtime for Runc {
    fn version(&self) -> BoxFuture<'_, Result<RuntimeInfo, RuntimeError>> {
        Box::pin(async move {
            let error = |source| RuntimeError::Command { what: "version", id: "-".to_owned(), source };
            let output = Command::new(&self.config.program)
                .arg("--version")
                .timeout(SHORT)
                .run()
                .await
                .map_err(error)?;
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.lines().next().and_then(|l| l.strip_prefix("runc version ")).map(str::trim);
            let answer = || RuntimeError::Answer {
                program: self.config.program.clone(),
                what: "--version",
                text: text.chars().take(200).collect(),
            };
            let path = find(&self.config.program).unwrap_or_else(|| self.config.program.clone().into());
            Ok(RuntimeInfo { name: "runc".to_owned(), version: version.ok_or_else(answer)?.to_owned(), path })
        })
    }

    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<RuntimeState>, RuntimeError>> {
        Box::pin(async move {
            // Without its directory there is nothing to ask, and no error text to interpret.
            if !self.config.root.join(id).exists() {
                return Ok(None);
            }
            let error = |source| RuntimeError::Command { what: "state", id: id.to_owned(), source };
            let output = match self.command().args(["state", id]).run().await {
                Ok(output) => output,
                Err(CommandError::Failed { stderr, .. }) if stderr.contains("does not exist") => {
                    return Ok(None);
                }
                Err(e) => return Err(error(e)),
            };
            let answer = || RuntimeError::Answer {
                program: self.config.program.clone(),
                what: "state",
                text: String::from_utf8_lossy(&output.stdout).chars().take(200).collect(),
            };
            let parsed: StateAnswer = serde_json::from_slice(&output.stdout).map_err(|_| answer())?;
            let status = match parsed.status.as_str() {
                "created" | "creating" => RuntimeStatus::Created,
                "running" => RuntimeStatus::Running,
                // A killed container whose cgroup is still frozen is called paused by runc.
                "paused" => match self.cgroup(id).events()? {
                    Some(events) if events.populated => RuntimeStatus::Paused,
                    _ => RuntimeStatus::Stopped,
                },
                "stopped" => RuntimeStatus::Stopped,
                _ => return Err(answer()),
            };
            let pid = if status == RuntimeStatus::Stopped { 0 } else { parsed.pid };
            Ok(Some(RuntimeState { status, pid }))
        })
    }

    fn freeze<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.on_cgroup(id, move |c| c.freeze(limit)))
    }

    fn thaw<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.on_cgroup(id, move |c| c.thaw(limit)))
    }

    fn checkpoint<'a>(
        &'a self,
        request: CheckpointRequest,
    ) -> BoxFuture<'a, Result<CheckpointReport, RuntimeError>> {
        Box::pin(async move {
            for dir in [&request.image_dir, &request.work_dir] {
                private_dir(dir)?;
            }
            // Neither a log of an earlier attempt nor its statistics may be taken for this one's.
            let log_path = request.work_dir.join("dump.log");
            let _ = std::fs::remove_file(&log_path);
            let _ = std::fs::remove_file(request.work_dir.join("stats-dump"));
            let mut command = self
                .command()
                .arg("checkpoint")
                .args(["--leave-running", "--file-locks", "--manage-cgroups-mode", "ignore"])
                .arg("--image-path")
                .arg(&request.image_dir)
                .arg("--work-path")
                .arg(&request.work_dir)
                .env("CRIU_CONFIG_FILE", &request.criu_config)
                .timeout(Duration::MAX)
                .on_abandon(OnAbandon::Leave);
            if let Some(path) = request.search_path {
                command = command.env("PATH", path);
            }
            if request.tcp_established {
                command = command.arg("--tcp-established");
            }
            match request.pages {
                Pages::Files => {}
                // runc insists on an address, and CRIU does not look at it: it has the socket.
                Pages::Sent(socket) => {
                    command = command.args(["--page-server", "127.0.0.1:1"]);
                    command = command.inherit("TRANSHIP_PAGE_SOCKET", socket);
                }
                Pages::Left(socket) => {
                    command = command.args(["--lazy-pages", "--page-server", "127.0.0.1:1"]);
                    command = command.inherit("TRANSHIP_PAGE_SOCKET", socket);
                }
            }
            let id = request.id;
            match command.arg(&id).run().await {
                Ok(output) => {
                    let stats = criu::read_dump_stats(&request.work_dir.join("stats-dump")).ok();
                    Ok(CheckpointReport { log_path, stats, elapsed: output.elapsed })
                }
                Err(CommandError::Failed { program, status, stderr }) => {
                    let log = criu::read_log(&log_path).unwrap_or_default();
                    let errors = criu::error_lines(&log);
                    let explanation = criu::explain(&log).or_else(|| criu::explain(&stderr));
                    if errors.is_empty() && explanation.is_none() {
                        let source = CommandError::Failed { program, status, stderr };
                        return Err(RuntimeError::Command { what: "checkpoint", id, source });
                    }
                    Err(RuntimeError::Checkpoint {
                        id,
                        explanation: explanation.map(Box::new),
                        errors,
                        log_path,
                    })
                }
                Err(source) => Err(RuntimeError::Command { what: "checkpoint", id, source }),
            }
        })
    }

    fn kill_frozen<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.on_cgroup(id, move |c| c.kill(limit)))
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            // With --force runc sleeps for 100 ms, also when nothing runs (`killContainer` of its delete.go).
            let known = || self.config.root.join(id).exists();
            if known() && self.short("deletion", id, &["delete"]).await.is_err() && known() {
                self.short("deletion", id, &["delete", "--force"]).await?;
            }
            // What runc leaves when a restore was cut short.
            self.on_cgroup(id, |c| c.kill(Duration::from_secs(5)).and_then(|()| c.remove())).await
        })
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move { self.short("start", id, &["start"]).await })
    }

    fn cgroup(&self, id: &str) -> Cgroup {
        Cgroup::at(self.config.cgroup_parent.join(id))
    }

    fn invocation(&self) -> (PathBuf, Vec<String>) {
        let program = find(&self.config.program).unwrap_or_else(|| self.config.program.clone().into());
        (program, vec![format!("--root={}", self.config.root.display())])
    }
}

fn private_dir(dir: &Path) -> Result<(), RuntimeError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| RuntimeError::Io { what: "create", path: dir.to_owned(), source })
}
