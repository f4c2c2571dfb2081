//! Ctrl-C and SIGTERM while a migration is watched.

use crate::agent::{Fake, Step};
use crate::command::{Result, Started, TRANSHIP, start};
use crate::commands::{refuse, row, say};
use crate::migrating::{Local, accepted, done, failed, fake, no_watch};
use std::io::{BufRead, BufReader};
use std::time::Duration;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::Reason;

/// Starts a migration, waits until it is shown, and hands the command over.
fn interrupted(fake: &Fake, act: impl FnOnce(&Started)) -> Result {
    let local = Local::new();
    let _running = fake.on_socket(&local.socket());
    let args =
        ["migrate", "web", "--to", "host-b", "--socket", local.socket().to_str().unwrap()].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = start(TRANSHIP, &args);
    let mut err = BufReader::new(command.child.stderr.take().unwrap());
    let mut first = String::new();
    err.read_line(&mut first).unwrap();
    assert!(first.starts_with("moving web"), "{first}");
    act(&command);
    // The rest of stderr still has to be read.
    let rest = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut err, &mut text).unwrap();
        text
    });
    command.child.stderr = Some(empty_pipe());
    let mut result = command.finish();
    result.err = first + &rest.join().unwrap();
    result
}

fn empty_pipe() -> std::process::ChildStderr {
    let mut child =
        std::process::Command::new("/bin/true").stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pipe = child.stderr.take().unwrap();
    child.wait().unwrap();
    pipe
}

fn is_cancel(r: &Request) -> bool {
    matches!(r, Request::Cancel { .. })
}

#[test]
fn the_first_interrupt_cancels() {
    let fake = fake(|| vec![accepted(), Step::Until(is_cancel), failed(1, Reason::Cancelled)], no_watch);
    let r = interrupted(&fake, |c| c.signal("-INT"));
    r.expect(7, &["asking for cancellation; Ctrl-C again", "web runs on host-a as before"]);
}

#[test]
fn an_interrupt_that_comes_too_late_says_so_and_the_migration_is_watched_to_its_end() {
    let fake = Fake::new("host-a", |r| match r {
        Request::List => say(Reply::Containers(vec![row("web", "host-a", "running")])),
        Request::Migrate(_) => vec![accepted(), Step::Until(is_cancel), Step::Wait(300), done(1)],
        _ => refuse(Reason::TooLate, "committed"),
    });
    interrupted(&fake, |c| c.signal("-INT")).expect(0, &["too late to cancel", "web runs on host-b"]);
}

#[test]
fn the_second_interrupt_leaves_and_so_does_a_termination() {
    let slow = || vec![accepted(), Step::Wait(50_000)];
    let r = interrupted(&fake(slow, no_watch), |c| {
        c.signal("-INT");
        std::thread::sleep(Duration::from_millis(500));
        c.signal("-INT");
    });
    r.expect(
        130,
        &["detached: cancellation was asked for", "follow it with `tranship watch 1f2e3d4c` on host-a"],
    );
    let one = fake(slow, no_watch);
    interrupted(&one, |c| c.signal("-TERM")).expect(130, &["detached: the migration goes on"]);
    assert!(!one.requests().iter().any(is_cancel));
}
