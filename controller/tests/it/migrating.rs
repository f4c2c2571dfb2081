//! A migration as it is watched: events, Ctrl-C, an agent that goes away.

use crate::agent::{Fake, Step};
use crate::certs::{Leaf, TestCa};
use crate::command::{MIGRATE, Result, TRANSHIP, start, tranship};
use crate::commands::{refuse, row, say};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tranship::client::Agent;
use tranship::follow::{Follow, Interrupts};
use tranship::progress::{Lines, Subject};
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::status::{
    Event, EventBody, Failure, MigrationStatus, Phase, Progressing, Reason, Side, Summary,
};

fn id() -> MigrationId {
    "0199aaaa-0000-7000-8000-00001f2e3d4c".parse().unwrap()
}

pub fn event(seq: u64, body: EventBody) -> Step {
    Step::Say(Reply::Event(Event { migration: id(), seq, at_unix_ms: 1_000, body }))
}

pub fn accepted() -> Step {
    Step::Say(Reply::Accepted { migration: id() })
}

fn started(seq: u64, phase: Phase) -> Step {
    event(seq, EventBody::PhaseStarted { phase })
}

fn finished(seq: u64, phase: Phase) -> Step {
    event(seq, EventBody::PhaseDone { phase, micros: 1_000, note: "well".into() })
}

pub fn done(seq: u64) -> Step {
    let summary = Summary {
        phases_us: vec![("reserve".into(), 1_000)],
        total_us: 2_000_000,
        bytes_read: 4096,
        bytes_sent: 1024,
        frozen_us: 150_000,
        ..Summary::default()
    };
    event(seq, EventBody::Done { summary })
}

pub fn failed(seq: u64, reason: Reason) -> Step {
    let failure = Failure::new(reason, Side::Destination, "the restore of web failed").phase(Phase::Prepare);
    event(seq, EventBody::Failed { failure })
}

fn status(state: Progressing) -> Reply {
    Reply::Migrations(vec![MigrationStatus {
        migration: id(),
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        destination: "host-b".parse().unwrap(),
        side: Side::Source,
        epoch: Epoch(2),
        state,
        phase: Phase::Stage,
        started_unix_ms: 0,
        updated_unix_ms: 0,
        failure: None,
        summary: None,
        resolution: None,
    }])
}

/// An agent that has `web` and answers Migrate and Watch as told.
pub fn fake(
    migrate: impl Fn() -> Vec<Step> + Send + Sync + 'static,
    watch: impl Fn(u64) -> Vec<Step> + Send + Sync + 'static,
) -> Fake {
    Fake::new("host-a", move |r| match r {
        Request::List => say(Reply::Containers(vec![row("web", "host-a", "running")])),
        Request::Migrate(_) => migrate(),
        Request::Watch { from_seq, .. } => watch(*from_seq),
        Request::Status { .. } => say(status(Progressing::Running)),
        Request::Cancel { .. } => say(Reply::Done("cancelling".into())),
        _ => refuse(Reason::BadRequest, "not asked for"),
    })
}

pub fn no_watch(_: u64) -> Vec<Step> {
    refuse(Reason::Internal, "nobody should watch")
}

pub struct Local {
    dir: tempfile::TempDir,
}

impl Local {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("s")
    }

    fn run(&self, args: &[&str]) -> Result {
        tranship(&[args, &["--socket", self.socket().to_str().unwrap()]].concat())
    }

    fn migrate(&self, fake: &Fake, more: &[&str]) -> Result {
        let _running = fake.on_socket(&self.socket());
        self.run(&[&["migrate", "web", "--to", "host-b"], more].concat())
    }
}

fn whole() -> Vec<Step> {
    let progress = |seq| {
        let phase = Phase::Stage;
        event(seq, EventBody::Progress { phase, done_bytes: 1, total_bytes: Some(2), bytes_per_second: 3 })
    };
    vec![
        accepted(),
        started(1, Phase::Reserve),
        finished(2, Phase::Reserve),
        progress(3),
        done(4),
        Step::Say(Reply::End),
    ]
}

#[test]
fn a_migration_is_lines_on_stderr_and_a_summary_on_stdout() {
    let r = Local::new().migrate(&fake(whole, no_watch), &[]).expect(0, &[]);
    assert_eq!(
        r.err,
        "moving web from host-a to host-b, migration 0199aaaa-0000-7000-8000-00001f2e3d4c\n  reserve     1.0 ms  well\n"
    );
    assert!(
        r.out.starts_with("web runs on host-b\n") && r.out.contains("blackout  no packets seen"),
        "{r:#?}"
    );
}

#[test]
fn in_json_it_is_an_object_a_line() {
    let r = Local::new().migrate(&fake(whole, no_watch), &["--output", "json"]).expect(0, &[]);
    let kinds: Vec<String> = r.json().iter().map(|o| o["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["accepted", "event", "event", "event", "event", "result"]);
    assert!(r.json().iter().all(|o| o["schema"] == 1 && o["migration"] == id().to_string()));
    let last = r.json().pop().unwrap();
    assert_eq!((last["exit_code"].as_u64(), last["summary"]["frozen_us"].as_u64()), (Some(0), Some(150_000)));
    assert_eq!(r.err, "");
}

#[test]
fn called_as_migrate_it_is_the_same() {
    let local = Local::new();
    let _running = fake(whole, no_watch).on_socket(&local.socket());
    let args = ["web", "--to", "host-b", "--no-progress", "--socket", local.socket().to_str().unwrap()]
        .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let r = start(MIGRATE, &args).finish().expect(0, &["web runs on host-b"]);
    assert_eq!(r.err, "");
    // A link of that name to the other binary, as a package may have it.
    let link = local.dir.path().join("migrate");
    std::os::unix::fs::symlink(TRANSHIP, &link).unwrap();
    start(&link, &args).finish().expect(0, &["web runs on host-b"]);
}

#[test]
fn how_it_ended_is_the_exit_code() {
    let local = Local::new();
    for (reason, code, words) in [
        (Reason::Failed, 1, "web runs on host-a as before"),
        (Reason::Refused, 6, "web runs on host-a as before"),
        (Reason::Ended, 1, "web is stopped, on host-a"),
        (Reason::Cancelled, 7, "web runs on host-a as before"),
        (Reason::InDoubt, 4, "web was given to host-b and is not confirmed; it runs nowhere else"),
    ] {
        let fake = fake(move || vec![accepted(), failed(1, reason)], no_watch);
        let r = local.migrate(&fake, &[]).expect(code, &["error: the restore of web failed", words]);
        assert!(r.err.contains("in phase prepare, at the destination"), "{r:#?}");
        let o = local.migrate(&fake, &["--output", "json"]).expect(code, &[]).json().pop().unwrap();
        assert_eq!((o["type"].as_str(), o["exit_code"].as_i64()), (Some("error"), Some(code.into())));
        assert_eq!(o["migration"], id().to_string());
    }
    for (reason, code) in
        [(Reason::Busy, 6), (Reason::UnknownHost, 2), (Reason::NotMigratable, 6), (Reason::NotAuthorized, 9)]
    {
        local.migrate(&fake(move || refuse(reason, "no"), no_watch), &[]).expect(code, &["error: no"]);
    }
}

#[test]
fn detach_returns_at_once_with_the_id() {
    let slow = || vec![accepted(), Step::Wait(30_000), done(1)];
    let r =
        Local::new().migrate(&fake(slow, no_watch), &["--detach"]).expect(0, &["tranship watch 1f2e3d4c"]);
    assert_eq!(r.out.trim(), id().to_string());
    assert!(r.took < Duration::from_secs(10));
}

#[test]
fn a_lost_agent_is_found_again_and_no_event_is_lost_or_shown_twice() {
    let local = Local::new();
    let first = fake(|| vec![accepted(), finished(1, Phase::Reserve), Step::Wait(1_500)], no_watch);
    let running = first.on_socket(&local.socket());
    let args =
        ["migrate", "web", "--to", "host-b", "--socket", local.socket().to_str().unwrap()].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let command = start(TRANSHIP, &args);
    std::thread::sleep(Duration::from_millis(1000));
    drop(running);
    std::thread::sleep(Duration::from_millis(1500));
    // Sends an event again that was seen, as an agent may after its restart.
    let watch = |from| {
        assert_eq!(from, 2);
        vec![finished(1, Phase::Reserve), finished(2, Phase::Stage), done(3)]
    };
    let second = fake(Vec::new, watch);
    let _running = second.on_socket(&local.socket());
    let r = command
        .finish()
        .expect(0, &["the migration goes on, trying to follow it again", "web runs on host-b"]);
    assert_eq!((r.err.matches("  reserve").count(), r.err.matches("  stage").count()), (1, 1), "{r:#?}");
    assert_eq!(second.requests(), [Request::Watch { migration: id(), from_seq: 2 }]);
}

#[test]
fn the_same_over_quic_and_with_an_orderly_end() {
    let (ca, dir) = (TestCa::new("fleet"), tempfile::tempdir().unwrap());
    let tries = AtomicUsize::new(0);
    let watch = move |from| match (tries.fetch_add(1, Ordering::SeqCst), from) {
        (0, 2) => vec![finished(2, Phase::Stage), Step::Say(Reply::End)],
        (1, 3) => {
            let failure = Failure::new(Reason::Busy, Side::Source, "still reading the journal").retryable();
            vec![Step::Say(Reply::Failed(failure))]
        }
        (2, 3) => vec![done(3)],
        other => panic!("{other:?}"),
    };
    let fake = fake(|| vec![accepted(), finished(1, Phase::Reserve), Step::Wait(100), Step::Hang], watch);
    let running = fake.on_quic(&ca, &Leaf::agent("host-a"), &ca);
    let config = ca.operator_config(dir.path(), &Leaf::operator(), &[("host-a", running.address())]);
    let args = ["migrate", "web", "--to", "host-b", "--from", "host-a", "--config", config.to_str().unwrap()];
    let gone = dir.path().join("gone");
    let r = tranship(&[&args[..], &["--socket", gone.to_str().unwrap()]].concat())
        .expect(0, &["web runs on host-b"]);
    assert_eq!((r.err.matches("  reserve").count(), r.err.matches("  stage").count()), (1, 1), "{r:#?}");
}

#[test]
fn an_agent_that_stays_away_ends_the_watching_but_not_the_migration() {
    // Through the library: the command itself looks for half a minute.
    let local = Local::new();
    let running =
        fake(Vec::new, |_| vec![finished(1, Phase::Reserve), Step::Wait(50_000)]).on_socket(&local.socket());
    let subject = Subject {
        migration: id(),
        container: "web".into(),
        source: "host-a".into(),
        destination: "host-b".into(),
    };
    let mut shown = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(running);
    });
    let begun = std::time::Instant::now();
    let error = runtime.block_on(async {
        let mut interrupts = Interrupts::new().unwrap();
        let follow = Follow {
            agent: Agent::local(local.socket()).into(),
            subject: &subject,
            view: &mut Lines::new(&mut shown),
            interrupts: &mut interrupts,
            seen: 0,
            search: Duration::from_secs(2),
        };
        follow.run(None).await.unwrap_err()
    });
    killer.join().unwrap();
    assert!((2..8).contains(&begun.elapsed().as_secs()));
    assert_eq!((error.code(), error.migration), (5, Some(id())));
    let text = error.to_text();
    assert!(
        text.contains("cannot reach the agent") && text.contains("`tranship watch 1f2e3d4c` on host-a"),
        "{text}"
    );
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("  reserve") && shown.contains("the migration goes on, trying"), "{shown}");
}

#[test]
fn events_of_another_migration_are_an_error() {
    let other = Event {
        migration: "0199aaaa-0000-7000-8000-000000000000".parse().unwrap(),
        seq: 1,
        at_unix_ms: 0,
        body: EventBody::Done { summary: Summary::default() },
    };
    let steps = move || vec![accepted(), Step::Say(Reply::Event(other.clone()))];
    Local::new().migrate(&fake(steps, no_watch), &[]).expect(255, &["answered with Event where Event"]);
}

#[test]
fn watch_and_cancel_find_a_migration_by_its_short_id() {
    let local = Local::new();
    let fake = fake(Vec::new, |from| vec![finished(from, Phase::Stage), done(from + 1)]);
    let running = fake.on_socket(&local.socket());
    local.run(&["watch", "1f2e3d4c"]).expect(0, &["moving web from host-a", "web runs on host-b"]);
    local.run(&["cancel", "1f2e3d4c"]).expect(0, &["cancelling"]);
    local.run(&["status", "1f2e3d4c"]).expect(0, &["state       running"]);
    drop(running);
    let unknown = Fake::new("host-a", |r| match r {
        Request::Status { .. } => say(Reply::Migrations(vec![])),
        Request::Cancel { .. } => refuse(Reason::TooLate, "already committed"),
        _ => say(Reply::Hosts(vec![])),
    });
    let _running = unknown.on_socket(&local.socket());
    for command in ["watch", "cancel", "status"] {
        local
            .run(&[command, "1f2e3d4c"])
            .expect(2, &["host-a knows no migration 1f2e3d4c", "tranship history"]);
        local.run(&[command, "nonsense!"]).expect(2, &["not the id of a migration"]);
    }
    local.run(&["status"]).expect(0, &["no migration is under way"]);
}

#[test]
fn a_migration_that_is_over_is_shown_with_its_result() {
    let local = Local::new();
    let fake = Fake::new("host-a", |_| say(status(Progressing::Cancelled)));
    let _running = fake.on_socket(&local.socket());
    local.run(&["watch", "1f2e3d4c"]).expect(7, &["the migration was cancelled"]);
}
