//! `tranship resolve` and `tranship drill`: what is asked of which agent, and what is refused here.

use crate::agent::{Fake, Step};
use crate::command::tranship;
use crate::commands::{refuse, row, say};
use std::path::PathBuf;
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::Epoch;
use tranship_proto::status::{
    ContainerRow, Failure, HostInfo, HostRow, MigrationStatus, Phase, Progressing, Reason, Side,
};

const ID: &str = "1f2e3d4c-0000-7000-8000-000000000001";

fn in_doubt(side: Side) -> MigrationStatus {
    MigrationStatus {
        migration: ID.parse().unwrap(),
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        destination: "host-b".parse().unwrap(),
        side,
        epoch: Epoch(2),
        state: Progressing::InDoubt,
        phase: Phase::Grant,
        started_unix_ms: 0,
        updated_unix_ms: 0,
        failure: Some(Failure::new(Reason::InDoubt, side, "no word from host-b")),
        summary: None,
        resolution: None,
    }
}

fn host_a() -> HostInfo {
    HostInfo {
        host: "host-a".parse().unwrap(),
        version: "0.1.0".into(),
        kernel: "6.12.0".into(),
        arch: "x86_64".into(),
        criu: "4.2".into(),
        runc: "1.3.6".into(),
        networks: vec!["lan".into()],
        containers: 1,
        migrations: 1,
        memory_available_mib: 1,
        disk_available_mib: 1,
        problems: vec![],
    }
}

/// The source's agent, with these containers.
fn source(rows: Vec<ContainerRow>, answer: fn() -> Vec<Step>) -> Fake {
    Fake::new("host-a", move |r| match r {
        Request::Status { .. } => say(Reply::Migrations(vec![in_doubt(Side::Source)])),
        Request::List => say(Reply::Containers(rows.clone())),
        Request::Hosts => say(Reply::Hosts(vec![HostRow {
            name: "host-a".parse().unwrap(),
            address: "127.0.0.1:1".into(),
            rtt_us: None,
            info: None,
            problem: None,
        }])),
        Request::HostInfo => say(Reply::HostInfo(host_a())),
        Request::Resolve { .. } => answer(),
        _ => refuse(Reason::BadRequest, "not asked for"),
    })
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    (dir, path)
}

const AT_SOURCE: [&str; 5] = ["resolve", "1f2e3d4c", "--run-at", "source", "--destination-is-dead"];

#[test]
fn a_decision_goes_to_the_side_that_is_left_and_its_words_are_shown() {
    let (_dir, socket) = socket();
    let fake = source(vec![], || say(Reply::Done("host-b is declared dead".into())));
    let _running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    tranship(&[&AT_SOURCE[..], &["--yes", "--socket", s]].concat()).expect(0, &["host-b is declared dead"]);
    let asked = fake.requests().into_iter().find(|r| matches!(r, Request::Resolve { .. }));
    assert_eq!(asked, Some(Request::Resolve { migration: ID.parse().unwrap(), run_at: Side::Source }));
}

#[test]
fn a_refusal_is_told_with_its_hint() {
    let (_dir, socket) = socket();
    let no = || {
        let f = Failure::new(Reason::Refused, Side::Source, "host-b answers: it is not dead");
        say(Reply::Failed(f.hint("tranship status --watch 1f2e3d4c")))
    };
    let _running = source(vec![], no).on_socket(&socket);
    let s = socket.to_str().unwrap();
    tranship(&[&AT_SOURCE[..], &["--yes", "--socket", s]].concat())
        .expect(6, &["host-b answers: it is not dead", "hint: tranship status --watch"]);
}

#[test]
fn nothing_is_decided_without_a_word_that_makes_sense() {
    let (_dir, socket) = socket();
    let fake = source(vec![row("web", "host-a", "running")], || say(Reply::Done(String::new())));
    let _running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    let resolve = |words: &[&str]| tranship(&[&["resolve", "1f2e3d4c", "--socket", s], words].concat());
    resolve(&["--run-at", "source"]).expect(2, &["--destination-is-dead"]);
    resolve(&["--run-at", "destination"]).expect(2, &["--source-is-dead"]);
    resolve(&["--run-at", "source", "--source-is-dead"]).expect(2, &["error: "]);
    resolve(&["--run-at", "source", "--destination-is-dead", "--source-is-dead"]).expect(2, &["error: "]);
    let alone = ["--run-at", "source", "--destination-is-dead"];
    // It runs: nothing is in doubt. And nobody is here who could confirm, with standard input closed.
    resolve(&[&alone[..], &["--yes"]].concat()).expect(6, &["web runs on host-a"]);
    let quiet = source(vec![], || say(Reply::Done(String::new())));
    drop(_running);
    let _running = quiet.on_socket(&socket);
    resolve(&alone).expect(2, &["nobody is here to confirm", "--yes"]);
    for fake in [&fake, &quiet] {
        assert!(!fake.requests().iter().any(|r| matches!(r, Request::Resolve { .. })), "it was ordered");
    }
}

#[test]
fn a_drill_is_refused_before_anything_is_moved() {
    let (_dir, socket) = socket();
    let fake = Fake::new("host-a", |r| match r {
        Request::List => say(Reply::Containers(vec![row("web", "host-a", "running")])),
        Request::Hosts => say(Reply::Hosts(vec![])),
        Request::Faults { .. } => {
            let f =
                Failure::new(Reason::Refused, Side::Source, "faults.allow_faults is not true on its host");
            say(Reply::Failed(f.hint("set allow_faults = true under [faults]")))
        }
        _ => refuse(Reason::BadRequest, "not asked for"),
    });
    let _running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    let drill = |words: &[&str]| tranship(&[&["drill", "web", "--socket", s], words].concat());
    drill(&["--to", "host-b"]).expect(2, &["no host host-b in the inventory"]);
    drill(&["--to", "host-a"]).expect(2, &["web is on host-a already"]);
    drill(&["--to", "host-b", "--net", "lan"]).expect(2, &["throw-away"]);
    drill(&["--to", "host-b", "--probe", "ping"]).expect(2, &["tcp:10.77.1.1:80"]);
    drill(&["--to", "host-b", "--fault", "nobody.send.grant=drop"]).expect(2, &["is no fault"]);
    let crash = ["--to", "host-b", "--fault", "source.send.grant=crash", "--without-crashes"];
    drill(&crash).expect(2, &["--without-crashes leaves them out"]);
    assert!(!fake.requests().iter().any(|r| matches!(r, Request::Migrate(_))), "it was moved");
}
