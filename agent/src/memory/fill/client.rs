//! The agent's side of a fill process: starts it, asks how far it is, waits for its end.
//!
//! Everything is found by the container's name, so that an agent that was started again knows as much.

use super::files::FillFiles;
use super::status::{FillState, FillStatus, OFF};
use crate::command::{Command, CommandError};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tranship_proto::ids::ContainerName;

/// Longest line.
const MAX_LINE: u64 = 4096;
/// Until a fill process listens.
const START: Duration = Duration::from_secs(20);

/// What a fill process needs.
#[derive(Debug, Clone)]
pub struct FillRequest {
    /// The agent's own program.
    pub program: PathBuf,
    /// Where the store and its map are.
    pub image_dir: PathBuf,
    /// Work directory of the restore; made when missing.
    pub work_dir: PathBuf,
    /// The container's cgroup, killed when its memory cannot be completed.
    pub cgroup: PathBuf,
    /// Its name, and where its socket goes.
    pub files: FillFiles,
}

/// Why memory is not filled in.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The process did not start.
    #[error("cannot start the process that fills memory in")]
    Start(#[from] CommandError),
    /// A file or socket.
    #[error("cannot {what} {path}")]
    Io {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The container is dead.
    #[error("the container was killed, since its memory could not be completed: {0}")]
    Killed(String),
    /// Not in time.
    #[error(
        "the memory of container {name} is still being filled in after {limit:?}: {filled} of {pages} pages"
    )]
    Deadline {
        /// The container.
        name: String,
        /// The limit.
        limit: Duration,
        /// Pages done.
        filled: u64,
        /// Of so many.
        pages: u64,
    },
}

fn io(what: &'static str, path: PathBuf) -> impl FnOnce(std::io::Error) -> FillError {
    move |source| FillError::Io { what, path, source }
}

/// Starts a fill process; it listens when this returns.
pub async fn start(request: &FillRequest) -> Result<(), FillError> {
    for dir in [&request.work_dir, &request.files.dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("create", dir.clone()))?;
    }
    let log = std::io::stderr().as_fd().try_clone_to_owned();
    let log = log.map_err(io("share", "the agent's log".into()))?;
    Command::new(&request.program)
        .arg("fill")
        .args([&request.image_dir, &request.work_dir, &request.cgroup, &request.files.dir])
        .arg(request.files.name.as_str())
        .inherit(super::LOG, log)
        .timeout(START)
        .run()
        .await?;
    Ok(())
}

/// A connection to a fill process, or nothing when there is none.
async fn connect(files: &FillFiles) -> Result<Option<UnixStream>, FillError> {
    match UnixStream::connect(files.socket()).await {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(io("connect to", files.socket())(e)),
    }
}

/// How far the filling of a container is; nothing when it is complete.
pub async fn progress(files: &FillFiles) -> Result<Option<FillStatus>, FillError> {
    let Some(stream) = connect(files).await? else { return Ok(None) };
    Ok(Lines::new(stream).next().await)
}

/// Follows a fill process to its end, telling how far it is. `Ok` with its last word, or with nothing
/// when there was no such process or the restore was called off.
///
/// # Errors
/// [`FillError::Killed`] when the container was killed, now or while nobody looked.
///
/// Cancel safe.
pub async fn watch(
    files: &FillFiles,
    mut tell: impl FnMut(&FillStatus),
) -> Result<Option<FillStatus>, FillError> {
    let mut last = None;
    if let Some(stream) = connect(files).await? {
        let mut lines = Lines::new(stream);
        while let Some(status) = lines.next().await {
            tell(&status);
            last = Some(status);
        }
    }
    if last.is_some_and(|s| s.state == FillState::Done) {
        return Ok(last);
    }
    match failed(files) {
        Some(why) => Err(FillError::Killed(why)),
        None => Ok(None),
    }
}

/// Waits until a held container runs: whether it does, or its fill process has ended before.
///
/// Cancel safe.
pub async fn until_running(files: &FillFiles) -> Result<bool, FillError> {
    let Some(stream) = connect(files).await? else { return Ok(false) };
    let mut lines = Lines::new(stream);
    while let Some(status) = lines.next().await {
        if status.state != FillState::Held {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Containers that are being filled in, or of whose end nobody has heard yet.
pub fn names(run_dir: &Path) -> Vec<ContainerName> {
    let Ok(entries) = std::fs::read_dir(FillFiles::dir(run_dir)) else { return Vec::new() };
    let name = |file: std::ffi::OsString| {
        let (name, _) = file.to_str()?.rsplit_once('.')?;
        name.parse().ok()
    };
    let mut names: Vec<ContainerName> = entries.flatten().filter_map(|e| name(e.file_name())).collect();
    names.sort();
    names.dedup();
    names
}

/// Why a container was killed by its fill process, until that is forgotten or the next one starts.
pub fn failed(files: &FillFiles) -> Option<String> {
    let why = std::fs::read(files.failure()).ok()?;
    Some(String::from_utf8_lossy(&why).chars().filter(|c| !c.is_control()).take(400).collect())
}

/// Forgets why a container was killed.
pub fn forget(files: &FillFiles) {
    if let Err(error) = std::fs::remove_file(files.failure())
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %files.failure().display(), "cannot remove");
    }
}

/// Waits until a container has all its memory.
///
/// Cancel safe.
pub async fn wait(
    files: &FillFiles,
    limit: Duration,
    tell: impl FnMut(&FillStatus),
) -> Result<(), FillError> {
    match tokio::time::timeout(limit, watch(files, tell)).await {
        Ok(end) => end.map(drop),
        Err(_) => {
            let now = progress(files).await?;
            let Some(FillStatus { filled, pages, .. }) = now else { return Ok(()) };
            Err(FillError::Deadline { name: files.name.to_string(), limit, filled, pages })
        }
    }
}

/// Ends a fill process whose container will not run, and waits for its end. Nothing to do when there is
/// none, or when its container runs: that one ends by itself.
pub async fn call_off(files: &FillFiles, limit: Duration) -> Result<(), FillError> {
    let Some(mut stream) = connect(files).await? else {
        // Killed in its first instants it has nobody who would remove that.
        files.remove_socket();
        forget(files);
        return Ok(());
    };
    let off = stream.write_all(OFF).await;
    let end = tokio::time::timeout(limit, async {
        let mut lines = Lines::new(stream);
        while let Some(status) = lines.next().await {
            if status.state != FillState::Held {
                return;
            }
        }
        // What it was killed for is no news.
        forget(files);
    });
    end.await.map_err(|_| {
        io("end", files.socket())(off.err().unwrap_or_else(|| std::io::Error::from(ErrorKind::TimedOut)))
    })
}

/// Lines of a fill process, to its end.
struct Lines {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new() }
    }

    async fn next(&mut self) -> Option<FillStatus> {
        self.line.clear();
        (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut self.line).await.ok()?;
        serde_json::from_slice(&self.line).ok()
    }
}
