//! The fill process: gives a restored container its memory, page by page, while it runs.
//!
//! A restore with `--lazy-pages` leaves private memory out and hands a userfaultfd for each process to
//! whoever listens on `lazy-pages.socket`. Here that is a process of its own for each container
//! (`transhipd fill`), which serves from the store beside it: no network is needed after the grant. It
//! is started before the restore, outlives the agent, and ends when the last page is where it belongs.
//!
//! What must never happen is that a process of the container reads zeros where it had data. The rules:
//! two processes hold every uffd ([`keeper`]), so that one death closes none; when pages cannot be given
//! any more the container is killed first; the store stays whole until the container runs, so that a
//! restore that is lost while held can be made again.
//!
//! Rejected: `criu lazy-pages`, which ends with a warning when something goes wrong and leaves the
//! container to read zeros, and which keeps all of the memory until its end.

mod client;
mod files;
mod keeper;
mod lazy;
mod outstanding;
mod slots;
mod status;
mod uffd;
mod worker;

pub use client::{
    FillError, FillRequest, call_off, failed, forget, names, progress, start, until_running, wait, watch,
};
pub use files::FillFiles;
pub use status::{FillState, FillStatus};

use self::keeper::{End, Pair};
use self::lazy::LazyListener;
use self::slots::Slots;
use self::status::StatusServer;
use self::worker::Worker;
use super::map::FillMap;
use super::store::{PAGES, PAGES_MAP};
use crate::runtime::Cgroup;
use nix::unistd::ForkResult;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Names the descriptor that messages go to.
const LOG: &str = "TRANSHIP_FILL_LOG";

/// One line to the agent's log, which this process shares.
fn say(files: &FillFiles, text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "fill {}: {text}", files.name);
}

/// What `transhipd fill` is called with.
struct Arguments {
    images: PathBuf,
    work: PathBuf,
    cgroup: PathBuf,
    files: FillFiles,
}

impl Arguments {
    fn parse(raw: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut raw = raw.into_iter();
        let mut next = || raw.next().map(PathBuf::from);
        let (images, work, cgroup, dir) = (next()?, next()?, next()?, next()?);
        let name = next()?.to_str()?.parse().ok()?;
        raw.next().is_none().then_some(Self { images, work, cgroup, files: FillFiles { dir, name } })
    }
}

/// `transhipd fill IMAGES WORK CGROUP FILLS NAME`: returns when the sockets listen; the work is done by
/// two processes in the background.
///
/// Exit status: 0 begun, 1 not, with a message, 2 wrong usage.
pub fn fill_main(raw: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(arguments) = Arguments::parse(raw) else {
        eprintln!("usage: transhipd fill IMAGES WORK CGROUP FILLS NAME");
        return ExitCode::from(2);
    };
    match begin(arguments) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("cannot fill memory in: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Listens at a name in a directory. By the directory, since paths of sockets are short (unix(7)).
fn listen(dir: &Path, name: &str) -> std::io::Result<UnixListener> {
    std::env::set_current_dir(dir)?;
    // Of an earlier process, which has ended.
    let _ = std::fs::remove_file(name);
    let listener = UnixListener::bind(name);
    std::env::set_current_dir("/")?;
    listener
}

fn begin(arguments: Arguments) -> std::io::Result<ExitCode> {
    let Arguments { images, work, cgroup, files } = arguments;
    if UnixStream::connect(files.socket()).is_ok() {
        return Err(std::io::Error::other(format!("{} is being filled in by another process", files.name)));
    }
    let store = File::options().read(true).write(true).open(images.join(PAGES))?;
    let slots = Slots::new(store)?;
    let lazy = LazyListener::Listening(listen(&work, lazy::SOCKET)?);
    let status = StatusServer::new(listen(&files.dir, &format!("{}.sock", files.name))?)?;
    let _ = std::fs::remove_file(files.failure());
    let pair = Pair::new(files, Cgroup::at(cgroup))?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { .. } => return Ok(ExitCode::SUCCESS),
        ForkResult::Child => nix::unistd::setsid()?,
    };
    detach()?;
    let keeper = pair.begin()?;
    // From here on the keeper watches: every end but a good one kills the container.
    let map = FillMap::read(&images.join(PAGES_MAP));
    let worker = map.and_then(|map| Worker::new(&pair, keeper, lazy, status, slots, map));
    work_through(&pair, worker)
}

/// Descriptors of its own instead of the agent's, and the last to be killed when memory is short.
fn detach() -> std::io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    match std::env::var(LOG).ok().and_then(|n| n.parse().ok()).filter(|n| *n > 2) {
        Some(log) => {
            // SAFETY: the agent has left this descriptor open for this process, and nothing else uses it.
            let log = unsafe { OwnedFd::from_raw_fd(log) };
            rustix::stdio::dup2_stderr(&log)?;
        }
        None => rustix::stdio::dup2_stderr(&null)?,
    }
    // Needs a capability that a host in a namespace may lack; then it is killed no sooner than others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    Ok(())
}

fn work_through(pair: &Pair, worker: std::io::Result<Worker<'_>>) -> ! {
    let end = match worker {
        Ok(mut worker) => {
            let end = worker.run();
            if end == End::Done {
                report(pair, &mut worker);
            }
            end
        }
        Err(e) => End::Failed(e.to_string()),
    };
    pair.end(&end);
    // Not by returning, which would close descriptors that the keeper still needs.
    std::process::exit(i32::from(end != End::Done));
}

fn report(pair: &Pair, worker: &mut Worker<'_>) {
    let figures = worker.figures(FillState::Done);
    say(
        &pair.files,
        &format!(
            "{} pages filled in, {} of them waited for, {} ms after the container ran",
            figures.pages, figures.faults, figures.elapsed_ms
        ),
    );
    pair.files.remove_socket();
    worker.tell(FillState::Done);
}
