//! An agent that lies, floods or says nothing: a clean error, in bounded time.

use crate::agent::{Fake, Greeting, Step};
use crate::certs::{Leaf, TestCa};
use crate::command::tranship;
use std::time::Duration;
use tranship_proto::control::Reply;
use tranship_proto::frame::Header;
use tranship_proto::registry::Message;
use tranship_proto::status::{Failure, Reason, Side};

fn raw_answers() -> Vec<(Vec<u8>, &'static str)> {
    let good = Message::from(Reply::Containers(vec![])).to_frame(1).unwrap();
    let mut cut = good.clone();
    cut.truncate(good.len() - 1);
    let header = |version, kind, length| Header { version, kind, length }.to_bytes().to_vec();
    let mut trailing = good.clone();
    trailing[12] += 1;
    trailing.push(0);
    vec![
        (header(1, 4, (4 << 20) + 1), "above its limit"),
        (header(1, 4, u32::MAX), "above its limit"),
        (header(1, 77, 0), "unknown message kind 77"),
        (header(2, 4, 1), "frame of protocol version 2"),
        (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "not a tranship frame"),
        ([header(1, 4, 3), vec![0xff; 3]].concat(), "cannot decode"),
        (trailing, "follow Reply"),
        (cut, "in the middle of a message"),
        (vec![], "before its answer was complete"),
        (Message::from(Reply::End).to_frame(1).unwrap(), "answered with End where Containers"),
        (good[..8].to_vec(), "in the middle of a message"),
    ]
}

#[test]
fn garbage_on_the_socket_is_a_clean_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for (bytes, words) in raw_answers() {
        let fake = Fake::new("host-a", move |_| vec![Step::Raw(bytes.clone())]);
        let _running = fake.on_socket(&socket);
        let r = tranship(&["ps", "--socket", socket.to_str().unwrap()]);
        assert!([255, 5].contains(&r.code), "{r:#?}");
        let r =
            r.expect(if words.contains("complete") || words.contains("middle") { 5 } else { 255 }, &[words]);
        assert!(r.took < Duration::from_secs(5) && r.err.contains("host-a"), "{r:#?}");
    }
}

#[test]
fn garbage_over_quic_is_a_clean_error() {
    let (ca, dir) = (TestCa::new("fleet"), tempfile::tempdir().unwrap());
    let config = ca.operator_config(dir.path(), &Leaf::operator(), &[]);
    for (bytes, words) in raw_answers() {
        let fake = Fake::new("host-b", move |_| vec![Step::Raw(bytes.clone())]);
        let running = fake.on_quic(&ca, &Leaf::agent("host-b"), &ca);
        let host = format!("host-b={}", running.address());
        let r = tranship(&["ps", "--host", &host, "--config", config.to_str().unwrap()]);
        let r =
            r.expect(if words.contains("complete") || words.contains("middle") { 5 } else { 255 }, &[words]);
        assert!(r.took < Duration::from_secs(5), "{r:#?}");
    }
}

#[test]
fn garbage_as_greeting_and_silence() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let reply = Message::from(Reply::End).to_frame(1).unwrap();
    let foreign = tranship_proto::control::Welcome::Version {
        version: 2,
        software: "x".into(),
        host: "host-a".parse().unwrap(),
    };
    let foreign = Message::from(foreign).to_frame(1).unwrap();
    for (greeting, code, words) in [
        (Greeting::Raw(b"220 mail ready, and some more words\r\n".to_vec()), 255, "not a tranship frame"),
        (Greeting::Raw(reply), 255, "answered with Reply where Welcome"),
        (Greeting::Raw(foreign), 255, "protocol version 2"),
        (Greeting::NoShared(vec![]), 9, "none in common"),
        (Greeting::Close(0, ""), 5, "ended before its greeting"),
        (Greeting::Nothing, 5, "has not answered for 10 s"),
    ] {
        let _running = Fake::new("host-a", |_| vec![]).greeting(greeting).on_socket(&socket);
        let r = tranship(&["ps", "--socket", socket.to_str().unwrap()]).expect(code, &[words]);
        assert!(r.took < Duration::from_secs(15), "{r:#?}");
    }
}

#[test]
fn words_of_an_agent_cannot_drive_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let failure = Failure::new(Reason::Refused, Side::Source, "a\u{1b}]0;b\u{7}\rerror: c\nhint: \u{202e}d")
        .hint("e\u{9b}2J");
    let _running =
        Fake::new("host-a", move |_| vec![Step::Say(Reply::Failed(failure.clone()))]).on_socket(&socket);
    let r = tranship(&["ps", "--socket", socket.to_str().unwrap()]).expect(6, &[]);
    let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!r.err.contains(bad), "{r:#?}");
    assert_eq!(r.err.lines().filter(|l| l.starts_with("hint:")).count(), 1, "{r:#?}");
}
