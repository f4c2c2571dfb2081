//! What the action script runs: waits for the agent's word. Blocking code; it has nothing else to do.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tranship_proto::ids::MigrationId;

use super::dump::{DumpStep, may_go_on};
use super::{Decision, MAX_LINE};

/// Between two attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(50);

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Asking {
    Restore(MigrationId),
    Dump(DumpStep),
}

/// `transhipd hook --socket PATH --migration ID` for a restore, `transhipd hook --socket PATH --dump STEP`
/// for a dump: returns success after `go` only.
///
/// Exit status: 0 go, 1 abort, 2 wrong usage. Every status but 0 makes CRIU call the whole off.
pub fn hook_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Called for another step by hand: nothing to hold, and success would be the wrong answer.
    let Some((socket, asking)) = parse(args) else {
        eprintln!("usage: transhipd hook --socket PATH --migration ID | --dump STEP");
        return ExitCode::from(2);
    };
    // A hold without its CRIU holds nothing, and nobody would ever end it.
    let parent = rustix::process::getppid();
    let tied = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if tied.is_err() || parent.is_none() || rustix::process::getppid() != parent {
        return ExitCode::FAILURE;
    }
    let go = match asking {
        Asking::Dump(step) => may_go_on(&socket, step),
        Asking::Restore(migration) => {
            let pid = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|p| p.parse::<i32>().ok()).unwrap_or(0);
            wait_for_decision(&socket, migration, pid) == Decision::Go
        }
    };
    if go { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Option<(PathBuf, Asking)> {
    let (mut socket, mut asking) = (None, None);
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let value = args.next()?;
        match name.to_str()? {
            "--socket" => socket = Some(PathBuf::from(value)),
            "--migration" if asking.is_none() => {
                asking = Some(Asking::Restore(value.to_str()?.parse().ok()?));
            }
            "--dump" if asking.is_none() => asking = Some(Asking::Dump(DumpStep::parse(value.to_str()?)?)),
            _ => return None,
        }
    }
    Some((socket?, asking?))
}

/// Asks until there is an answer, for ever.
pub(crate) fn wait_for_decision(socket: &Path, migration: MigrationId, pid: i32) -> Decision {
    loop {
        if let Some(decision) = ask(socket, migration, pid) {
            return decision;
        }
        std::thread::sleep(RETRY);
    }
}

fn ask(socket: &Path, migration: MigrationId, pid: i32) -> Option<Decision> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(format!("held {migration} {pid}\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE as u64)).read_line(&mut line).ok()?;
    // A cut line is no answer: "go" without its end may be the beginning of something else.
    let decision = Decision::parse(line.strip_suffix('\n')?)?;
    let _ = stream.write_all(b"ok\n");
    Some(decision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_never_succeeds() {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let words = |w: &[&str]| parse(w.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(words(&["--socket", "/s", "--migration", id]).is_some());
        let (_, asking) = words(&["--socket", "/s", "--dump", "post-dump"]).unwrap();
        assert_eq!(asking, Asking::Dump(DumpStep::After));
        for bad in [
            &[][..],
            &["--socket"],
            &["--socket", "/s"],
            &["--migration", id],
            &["--socket", "/s", "--migration", "../x"],
            &["--x", "y"],
            &["--socket", "/s", "--dump", "pre-restore"],
            &["--socket", "/s", "--dump", "pre-dump", "--migration", id],
        ] {
            assert!(words(bad).is_none(), "{bad:?}");
        }
    }
}
