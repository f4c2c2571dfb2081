//! One host of a running lab: run programs in it, read its log, start and stop its agent.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::error::{LabError, Result};
use crate::image::tail;
use crate::names::LabName;
use crate::run::{LabCommand, Output};
use crate::state::{HostState, start_time};
use crate::sys::Entrance;

/// How long an agent gets until its socket answers, or until it is gone.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A handle on a host. Cheap to clone; it does not keep the host alive.
#[derive(Debug, Clone)]
pub struct Host {
    lab: LabName,
    state: HostState,
}

impl Host {
    pub(crate) fn new(lab: LabName, state: HostState) -> Self {
        Self { lab, state }
    }

    /// `host-a`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// 0 for `host-a`.
    #[must_use]
    pub fn index(&self) -> usize {
        self.state.index
    }

    /// First process of the host as the machine sees it.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        self.state.init_pid
    }

    /// Whether its first process still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        start_time(self.state.init_pid) == Some(self.state.init_start)
    }

    /// cgroup of the host, relative to the root of every hierarchy: `tl-lab/host-a`.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("{}/{}", self.lab.cgroup(), self.state.name)
    }

    /// Where a path of the host is found from the machine. Symbolic links in it are followed as
    /// the machine sees them, so give paths without absolute links.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.state.init_pid))
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    pub(crate) fn entrance(&self) -> Result<Entrance> {
        if !self.alive() {
            return Err(LabError::Missing {
                what: format!("{} of lab {} does not run any more", self.name(), self.lab),
                hint: format!("`tranship-lab down --name {0}`, then `up --name {0}`", self.lab),
            });
        }
        Entrance::host(Pid::from_raw(self.state.init_pid), &cgroup::procs_files(&self.cgroup())?)
    }

    /// A program to be run on this host: in all its namespaces and cgroups, at `/`, as root, with
    /// a clean environment. Set streams and variables, then `run`, `spawn` or `status`.
    pub fn command<I>(&self, args: I) -> Result<LabCommand>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = LabCommand::new(self.name(), args, self.entrance()?)?
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8");
        for key in ["TERM", "RUST_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(key) {
                command = command.env(key, value);
            }
        }
        Ok(command)
    }

    /// Runs a program to its end. An exit code other than 0 is not an error; see [`Output::ok`].
    pub fn run<I>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args)?.run()
    }

    /// Starts a program with nothing at its standard input, a pipe at its standard output, and
    /// the caller's standard error.
    pub fn spawn<I>(&self, args: I) -> Result<Child>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.command(args)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    }

    /// Processes of the host, as the machine numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        cgroup::processes(&self.cgroup())
    }

    /// What the agent wrote; kept outside the host.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.lab.host_dir(self.name()).join("agent.log")
    }

    /// Process of the agent, as the machine numbers it.
    pub fn agent_pid(&self) -> Result<Option<i32>> {
        Ok(self.processes()?.into_iter().find(|pid| is_agent(*pid)))
    }

    /// Starts the agent and waits until its control socket takes a connection, at most 10 s.
    pub fn start_agent(&self) -> Result<()> {
        if self.agent_pid()?.is_some() {
            return Err(self.agent_error("it runs already", false));
        }
        let path = self.agent_log();
        let log =
            OpenOptions::new().create(true).append(true).open(&path).map_err(LabError::io("open", &path))?;
        let errors = log.try_clone().map_err(LabError::io("open", &path))?;
        // The shell ends at once, so that the agent becomes a child of the host's first process
        // and not of whoever starts it.
        self.command(["sh", "-c", "setsid transhipd --config /etc/tranship/transhipd.toml &"])?
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .status()?;
        let socket = self.path("/run/tranship/agent.sock");
        let started = Instant::now();
        // In the middle of an execve(2) a process has no arguments to be known by.
        let (mut seen, mut missed) = (false, 0);
        loop {
            if UnixStream::connect(&socket).is_ok() {
                return Ok(());
            }
            let running = self.agent_pid()?.is_some();
            missed = if running { 0 } else { missed + 1 };
            // Within a second the shell and setsid have made way for it, or never will.
            if missed > 2 && (seen || started.elapsed() > Duration::from_secs(1)) {
                return Err(self.agent_error("it ended right after its start", true));
            }
            seen |= running;
            if started.elapsed() > AGENT_PATIENCE {
                return Err(self.agent_error("/run/tranship/agent.sock did not answer in 10 s", true));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the agent as a crash would (SIGKILL) and waits until it is gone.
    pub fn kill_agent(&self) -> Result<()> {
        self.end_agent(Signal::SIGKILL)
    }

    /// Asks the agent to end (SIGTERM) and waits until it is gone, at most 10 s.
    pub fn stop_agent(&self) -> Result<()> {
        self.end_agent(Signal::SIGTERM)
    }

    fn end_agent(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.agent_pid()? else {
            return Err(self.agent_error("it does not run", true));
        };
        kill(Pid::from_raw(pid), signal)
            .map_err(LabError::system(format!("signal the agent of {}", self.name())))?;
        let deadline = Instant::now() + AGENT_PATIENCE;
        while is_agent(pid) {
            if Instant::now() > deadline {
                return Err(self.agent_error("it did not end in 10 s", true));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn agent_error(&self, what: &str, with_log: bool) -> LabError {
        LabError::Agent {
            host: self.name().to_owned(),
            what: what.to_owned(),
            log: if with_log { tail(&self.agent_log(), 20) } else { String::new() },
        }
    }
}

// Not one of its helpers, such as `transhipd hook`, which CRIU runs.
fn is_agent(pid: i32) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let mut args = line.split(|b| *b == 0);
    let program = args.next().unwrap_or_default();
    let option = args.next().is_some_and(|a| a.starts_with(b"-"));
    program.rsplit(|b| *b == b'/').next() == Some(b"transhipd") && option
}
