//! Commands with one answer, and the search for a container.

use crate::agent::{Fake, Step};
use crate::certs::{Leaf, TestCa};
use crate::command::tranship;
use tranship_proto::control::{Reply, Request, RootfsSpec};
use tranship_proto::ids::Epoch;
use tranship_proto::status::{ContainerRow, Failure, HostRow, Reason, Side};

pub fn row(name: &str, host: &str, state: &str) -> ContainerRow {
    ContainerRow {
        name: name.parse().unwrap(),
        host: host.parse().unwrap(),
        state: state.into(),
        pid: Some(4242),
        addresses: vec!["10.77.1.1/16".into()],
        command: "redis-server".into(),
        created_unix_ms: 0,
        epoch: Epoch(1),
    }
}

pub fn say(reply: Reply) -> Vec<Step> {
    vec![Step::Say(reply)]
}

pub fn refuse(reason: Reason, words: &str) -> Vec<Step> {
    say(Reply::Failed(Failure::new(reason, Side::Source, words)))
}

/// An agent with containers that refuses everything else.
fn with(host: &'static str, rows: Vec<ContainerRow>) -> Fake {
    Fake::new(host, move |r| match r {
        Request::List => say(Reply::Containers(rows.clone())),
        Request::HostInfo => refuse(Reason::Internal, "not now"),
        Request::Hosts => say(Reply::Hosts(vec![])),
        Request::Migrate(_) => say(Reply::Plan(vec!["one".into()])),
        _ => refuse(Reason::BadRequest, "not asked for"),
    })
}

#[test]
fn run_sends_what_was_typed_and_other_orders_too() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, rootfs) = (dir.path().join("s"), dir.path().join("r"));
    std::fs::create_dir(&rootfs).unwrap();
    let fake = Fake::new("host-a", |_| say(Reply::Done("so be it".into())));
    let _running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    let r = rootfs.to_str().unwrap();
    let line = ["run", "--socket", s, "--name", "web", "--rootfs", r, "--net", "lan", "--ip", "10.77.1.1/16"];
    tranship(&[&line[..], &["--net", "back", "--", "sh", "-c", "x y"]].concat()).expect(0, &["so be it"]);
    tranship(&["stop", "web", "--timeout", "3", "--socket", s, "--output", "json"])
        .expect(0, &[r#"{"message":"so be it","schema":1,"type":"done"}"#]);
    tranship(&["--socket", s, "rm", "web", "--force"]).expect(0, &[]);
    let seen = fake.requests();
    let Request::Run(run) = &seen[0] else { panic!("{seen:?}") };
    assert_eq!(run.args, ["sh", "-c", "x y"]);
    assert_eq!(run.links.iter().map(|l| l.network.as_str()).collect::<Vec<_>>(), ["lan", "back"]);
    assert_eq!(run.rootfs, RootfsSpec::Directory(rootfs.canonicalize().unwrap().to_str().unwrap().into()));
    assert_eq!(seen[1], Request::Stop { name: "web".parse().unwrap(), timeout_ms: 3000 });
    assert_eq!(seen[2], Request::Remove { name: "web".parse().unwrap(), force: true });
}

#[test]
fn logs_are_raw_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let fake = Fake::new("host-a", |_| {
        vec![
            Step::Say(Reply::Log(b"one\x1b[1m".to_vec())),
            Step::Say(Reply::Log(b"two".to_vec())),
            Step::Say(Reply::End),
        ]
    });
    let _running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    let r = tranship(&["logs", "web", "-f", "--tail-bytes", "2k", "--socket", s]).expect(0, &[]);
    assert_eq!(r.out, "one\u{1b}[1mtwo");
    let wanted = Request::Logs { name: "web".parse().unwrap(), tail_bytes: Some(2048), follow: true };
    assert_eq!(fake.requests(), [wanted]);
}

#[test]
fn without_an_agent_the_error_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, config) = (dir.path().join("gone"), dir.path().join("c.toml"));
    std::fs::write(&config, "").unwrap();
    let common = ["--socket", gone.to_str().unwrap(), "--config", config.to_str().unwrap()];
    for command in [
        &["ps"][..],
        &["hosts"],
        &["status"],
        &["history"],
        &["migrate", "web", "--to", "host-b"],
        &["ps", "-a"],
    ] {
        tranship(&[command, &common].concat()).expect(
            5,
            &[
                "error: cannot reach the agent of this host at",
                "because: ",
                "hint: is transhipd running here",
            ],
        );
    }
    tranship(&[&["ps", "--host", "host-b"][..], &common].concat())
        .expect(5, &["cannot look up the address of host-b", "--host host-b=ADDRESS:PORT"]);
    let r = tranship(&[&["ps", "--output", "json"][..], &common].concat()).expect(5, &[]);
    let o = &r.json()[0];
    assert_eq!(
        (o["type"].as_str(), o["exit_code"].as_u64(), o["reason"].as_str()),
        (Some("error"), Some(5), Some("unreachable"))
    );
    assert!(o["hint"].as_str().unwrap().contains("transhipd"));
}

#[test]
fn an_unknown_container_brings_names_that_are_near() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _running = with("host-a", vec![row("web", "host-a", "running"), row("db", "host-a", "running")])
        .on_socket(&socket);
    let s = socket.to_str().unwrap();
    tranship(&["migrate", "wbe", "--to", "host-b", "--socket", s])
        .expect(2, &["no container wbe on any of 0 hosts", "did you mean web?"]);
    tranship(&["migrate", "web", "--to", "host-a", "--socket", s])
        .expect(2, &["on host-a already", "same host"]);
    tranship(&["migrate", "web", "--to", "host-a", "--from", "host-a", "--socket", s])
        .expect(2, &["same host"]);
    tranship(&["migrate", "web", "--to", "host-b", "--dry-run", "--socket", s])
        .expect(0, &["web would be moved from host-a to host-b:\n  one"]);
}

#[test]
fn the_host_that_has_the_container_is_found() {
    let (ca, dir) = (TestCa::new("fleet"), tempfile::tempdir().unwrap());
    let b = with(
        "host-b",
        vec![
            row("web", "host-b", "running"),
            row("twin", "host-b", "running"),
            row("moving", "host-b", "arriving"),
        ],
    );
    let c = with("host-c", vec![row("twin", "host-c", "stopped"), row("moving", "host-c", "leaving")]);
    let (rb, rc) = (b.on_quic(&ca, &Leaf::agent("host-b"), &ca), c.on_quic(&ca, &Leaf::agent("host-c"), &ca));
    let both = [("host-b", rb.address()), ("host-c", rc.address())];
    let config = ca.operator_config(dir.path(), &Leaf::operator(), &both);
    let gone = dir.path().join("gone");
    let common = ["--socket", gone.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let run = |args: &[&str]| tranship(&[args, &common].concat());
    run(&["migrate", "web", "--to", "host-c", "--dry-run"]).expect(0, &["from host-b to host-c"]);
    run(&["migrate", "moving", "--to", "host-a", "--dry-run"]).expect(0, &["from host-c to host-a"]);
    run(&["migrate", "twin", "--to", "host-a"])
        .expect(2, &["container twin is on host-", " and on ", "--from HOST"]);
    run(&["migrate", "twin", "--to", "host-a", "--from", "host-c", "--dry-run"])
        .expect(0, &["from host-c to host-a"]);
    run(&["migrate", "web", "--to", "host-b"]).expect(2, &["on host-b already"]);
    run(&["migrate", "webb", "--to", "host-c"])
        .expect(2, &["no container webb on any of 2 hosts", "did you mean web?"]);
    run(&["migrate", "web", "--to", "host-c", "--from", "host-d"])
        .expect(2, &["no host host-d in the inventory"]);
    let r = run(&["ps", "--all-hosts"]).expect(0, &[]);
    assert_eq!(r.out.lines().count(), 6, "{r:#?}");
    drop(rc);
    run(&["ps", "--all-hosts"]).expect(3, &["host-c is missing here: host-c does not answer", "4242"]);
    run(&["migrate", "webb", "--to", "host-c"]).expect(5, &["was not found, and host-c could not be asked"]);
    run(&["migrate", "web", "--to", "host-c", "--dry-run"]).expect(0, &["from host-b"]);
}

#[test]
fn hosts_come_from_the_agent_or_are_asked_from_here() {
    let (ca, dir) = (TestCa::new("fleet"), tempfile::tempdir().unwrap());
    let silent = HostRow {
        name: "host-z".parse().unwrap(),
        address: "10.0.0.9:7717".into(),
        rtt_us: None,
        info: None,
        problem: Some("no answer in 3 s".into()),
    };
    let socket = dir.path().join("s");
    let fake = Fake::new("host-a", move |_| say(Reply::Hosts(vec![silent.clone()])));
    let running = fake.on_socket(&socket);
    let s = socket.to_str().unwrap();
    tranship(&["hosts", "--socket", s])
        .expect(0, &["host-z  10.0.0.9:7717  -    no answer", "host-z: no answer in 3 s"]);
    let r = tranship(&["hosts", "--socket", s, "--output", "json"]).expect(0, &[]);
    assert_eq!(r.json()[0]["hosts"][0]["problem"], "no answer in 3 s");
    drop(running);
    let b = with("host-b", vec![]).on_quic(&ca, &Leaf::agent("host-b"), &ca);
    let config = ca.operator_config(dir.path(), &Leaf::operator(), &[("host-b", b.address())]);
    tranship(&["hosts", "--socket", s, "--config", config.to_str().unwrap()]).expect(0, &["host-b: not now"]);
}
