//! The only place of the agent that starts child processes.
//!
//! Why one place: a child inherits descriptors, environment, process group and output pipes, and each of
//! them has hurt somebody. Here every child gets an argument vector (never a shell string), an environment
//! of its own, `/dev/null` as input, its own process group, a deadline, and an output that is read to the
//! end but kept only in part.
//!
//! Rejected: `pre_exec` to hand descriptors over. It needs `unsafe` and makes the standard library fork
//! the whole agent, which is slow when the agent holds gigabytes of images. Instead the descriptor loses
//! its close-on-exec flag under a lock that every start takes.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;

/// How much of each output stream is kept, in bytes: the tail.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// `PATH` of every child; the agent's own environment is not passed on.
pub const CHILD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// After the child ended, how long output may still come from whoever inherited its pipes.
const DRAIN: Duration = Duration::from_millis(250);

/// Held while a descriptor without close-on-exec exists, so that no other child inherits it.
static SPAWN: Mutex<()> = Mutex::new(());

/// Why a child process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Name of the program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program ended with a failure.
    #[error("{program} failed ({status}): {}", last_lines(.stderr))]
    Failed {
        /// Name of the program.
        program: String,
        /// Exit status or signal.
        status: ExitStatus,
        /// Tail of its error output.
        stderr: String,
    },
    /// The program did not end in time.
    #[error("{program} did not finish within {limit:?}{}", if *.killed { " and was killed" } else { " and was left running" })]
    Timeout {
        /// Name of the program.
        program: String,
        /// The limit.
        limit: Duration,
        /// Whether its process group was killed.
        killed: bool,
    },
    /// The program could not be waited for.
    #[error("cannot wait for {program}: {source}")]
    Wait {
        /// Name of the program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CommandError {
    /// Tail of the error output, when the program ran and failed.
    pub fn stderr(&self) -> Option<&str> {
        match self {
            CommandError::Failed { stderr, .. } => Some(stderr),
            _ => None,
        }
    }

    /// Whether the program is not installed.
    pub fn is_missing(&self) -> bool {
        matches!(self, CommandError::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    match lines.len() {
        0 => "no error output".to_owned(),
        n => lines[n.saturating_sub(3)..].join("; "),
    }
}

/// What a child left behind.
#[derive(Debug)]
pub struct Output {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// Tail of the standard output, at most [`OUTPUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Tail of the error output, invalid UTF-8 replaced.
    pub stderr: String,
    /// Whether anything was cut off from either.
    pub truncated: bool,
    /// From start to end.
    pub elapsed: Duration,
}

/// What happens to a child whose future is dropped or whose time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAbandon {
    /// SIGKILL to its process group.
    Kill,
    /// It goes on. For CRIU in the middle of a dump, which must never be killed: it has code injected
    /// into the processes it works on.
    Leave,
}

/// A child process to be started.
#[derive(Debug)]
pub struct Command {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    timeout: Duration,
    on_abandon: OnAbandon,
    inherit: Vec<(OsString, OwnedFd)>,
}

impl Command {
    /// A program, looked up in [`CHILD_PATH`] unless it is a path. The time limit is 30 s at first.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Command {
            argv: vec![program.as_ref().to_owned()],
            env: vec![("PATH".into(), CHILD_PATH.into()), ("LC_ALL".into(), "C".into())],
            timeout: Duration::from_secs(30),
            on_abandon: OnAbandon::Kill,
            inherit: Vec::new(),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the child's environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the time limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Says what happens to the child when nobody waits for it any more.
    pub fn on_abandon(mut self, what: OnAbandon) -> Self {
        self.on_abandon = what;
        self
    }

    /// Gives a descriptor to the child; the variable tells it the number.
    pub fn inherit(mut self, variable: impl AsRef<OsStr>, fd: OwnedFd) -> Self {
        self.inherit.push((variable.as_ref().to_owned(), fd));
        self
    }

    /// The argument vector, for logs.
    pub fn argv(&self) -> &[OsString] {
        &self.argv
    }

    /// Runs the program to its end and requires success.
    ///
    /// Cancel safety: dropping the future does to the child what [`Command::on_abandon`] says.
    pub async fn run(self) -> Result<Output, CommandError> {
        let program = self.argv[0].to_string_lossy().into_owned();
        let output = self.output().await?;
        if output.status.success() {
            Ok(output)
        } else {
            Err(CommandError::Failed { program, status: output.status, stderr: output.stderr })
        }
    }

    /// Runs the program to its end, whatever its exit status.
    ///
    /// Cancel safety: as [`Command::run`].
    pub async fn output(self) -> Result<Output, CommandError> {
        let (limit, on_abandon) = (self.timeout, self.on_abandon);
        let running = self.spawn()?;
        let program = running.program.clone();
        // A task of its own: a child that must be left alone is also waited for and its pipes are
        // read when the caller has gone, else it would block on a full pipe or die of SIGPIPE.
        match on_abandon {
            OnAbandon::Kill => match tokio::time::timeout(limit, running.wait()).await {
                Ok(done) => done,
                Err(_) => Err(CommandError::Timeout { program, limit, killed: true }),
            },
            OnAbandon::Leave => {
                let task = tokio::spawn(running.wait());
                match tokio::time::timeout(limit, task).await {
                    Ok(Ok(done)) => done,
                    Ok(Err(join)) => Err(CommandError::Wait { program, source: std::io::Error::other(join) }),
                    Err(_) => Err(CommandError::Timeout { program, limit, killed: false }),
                }
            }
        }
    }

    /// Starts the program.
    pub fn spawn(self) -> Result<Running, CommandError> {
        let program = self.argv[0].to_string_lossy().into_owned();
        let fail = |source| CommandError::Start { program: program.clone(), source };
        let mut command = tokio::process::Command::new(resolve(&self.argv[0]));
        command.args(&self.argv[1..]).env_clear();
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let child = {
            let _guard = SPAWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (variable, fd) in &self.inherit {
                use std::os::fd::AsRawFd;
                command.env(variable, fd.as_raw_fd().to_string());
                set_cloexec(fd, false).map_err(fail)?;
            }
            let child = command.spawn();
            drop(self.inherit);
            child.map_err(fail)?
        };
        tracing::debug!(program, pid = child.id(), argv = ?self.argv, "child started");
        Ok(Running {
            program,
            pid: child.id().unwrap_or(0),
            child,
            on_abandon: self.on_abandon,
            started,
            ended: false,
        })
    }
}

fn resolve(program: &OsStr) -> OsString {
    if program.as_encoded_bytes().contains(&b'/') {
        return program.to_owned();
    }
    // The child's PATH, not the agent's: the same program is meant whoever started the agent.
    find(program).map_or_else(|| program.to_owned(), Into::into)
}

/// Finds a program in [`CHILD_PATH`]; a path is taken as it is.
pub fn find(program: impl AsRef<OsStr>) -> Option<std::path::PathBuf> {
    let program = program.as_ref();
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(program.into()).filter(|p: &std::path::PathBuf| p.is_file());
    }
    CHILD_PATH.split(':').map(|dir| std::path::Path::new(dir).join(program)).find(|p| p.is_file())
}

fn set_cloexec(fd: impl AsFd, on: bool) -> std::io::Result<()> {
    let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop).map_err(Into::into)
}

/// A child that was started.
#[derive(Debug)]
pub struct Running {
    program: String,
    pid: u32,
    child: Child,
    on_abandon: OnAbandon,
    started: Instant,
    ended: bool,
}

impl Running {
    /// Process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end, reading both outputs. No time limit.
    ///
    /// Cancel safety: dropping the future kills or leaves the child as it was told to.
    pub async fn wait(mut self) -> Result<Output, CommandError> {
        let mut out = Tail::default();
        let mut err = Tail::default();
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let status = {
            let read = async { tokio::join!(out.fill(stdout), err.fill(stderr)) };
            tokio::pin!(read);
            let mut drained = false;
            let status = loop {
                tokio::select! {
                    status = self.child.wait() => break status,
                    _ = &mut read, if !drained => drained = true,
                }
            };
            self.ended = true;
            if !drained {
                // A grandchild may hold the pipes for as long as it lives.
                let _ = tokio::time::timeout(DRAIN, &mut read).await;
            }
            status
        };
        let status = status.map_err(|source| CommandError::Wait { program: self.program.clone(), source })?;
        Ok(Output {
            status,
            truncated: out.cut || err.cut,
            stdout: out.into_bytes(),
            stderr: String::from_utf8_lossy(&err.into_bytes()).into_owned(),
            elapsed: self.started.elapsed(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended || self.on_abandon == OnAbandon::Leave || self.pid == 0 {
            return;
        }
        // Not yet waited for, so the number cannot belong to another group.
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ =
                nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The last [`OUTPUT_LIMIT`] bytes of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    async fn fill<R: AsyncRead + Unpin>(&mut self, from: Option<R>) {
        let Some(mut from) = from else { return };
        let mut chunk = vec![0u8; 8192];
        while let Ok(n) = from.read(&mut chunk).await {
            if n == 0 {
                break;
            }
            self.bytes.extend_from_slice(&chunk[..n]);
            if self.bytes.len() > 2 * OUTPUT_LIMIT {
                self.trim();
            }
        }
    }

    fn trim(&mut self) {
        if self.bytes.len() > OUTPUT_LIMIT {
            self.bytes.drain(..self.bytes.len() - OUTPUT_LIMIT);
            self.cut = true;
        }
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.trim();
        self.bytes
    }
}
