//! The wire as bytes: what each message looks like, and what becomes of bytes that are none.
//!
//! `golden.txt` holds the frame of one sample of every message and variant. A changed line is a
//! changed protocol: it needs a new version (`proto/src/version.rs`), not a new golden file. New
//! variants are added at the end and written with `TRANSHIP_GOLDEN=write cargo test -p tranship-proto`.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

mod samples;

use proptest::prelude::*;
use samples::{messages, records};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;
use tranship_proto::bulk::{RECORD_HEADER_LEN, RecordHeader};
use tranship_proto::error::WireError;
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::handoff::{Envelope, Handoff, MemoryMode, Offer};
use tranship_proto::ids::Epoch;
use tranship_proto::pages::{PageBatch, ZeroRun};
use tranship_proto::registry::{Message, limit_of};
use tranship_proto::tree::{TreeMeta, TreeRecord};
use tranship_proto::{codec, version};

const VERSION: u16 = version::SUPPORTED[0];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn frames() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, message) in messages() {
        all.push((name.to_owned(), message.to_frame(VERSION).unwrap()));
    }
    for (name, meta) in records() {
        all.push((format!("record.{name}"), codec::encode("record", &meta, 1 << 20).unwrap()));
    }
    all
}

#[test]
fn every_message_keeps_its_bytes() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt"));
    let found = frames();
    if std::env::var_os("TRANSHIP_GOLDEN").is_some() {
        let text = found.iter().fold(String::new(), |s, (name, bytes)| s + name + " " + &hex(bytes) + "\n");
        std::fs::write(&path, text).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let golden: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once(' ')).collect();
    for (name, bytes) in &found {
        assert_eq!(golden.get(name.as_str()).copied(), Some(hex(bytes).as_str()), "{name}");
    }
    assert_eq!(golden.len(), found.len(), "the golden file has a message that no sample stands for");
}

#[test]
fn every_message_comes_back_as_it_was() {
    for (name, message) in messages() {
        assert_eq!(Message::from_frame(&message.to_frame(VERSION).unwrap()).unwrap(), message, "{name}");
    }
    for (name, meta) in records() {
        let bytes = codec::encode("record", &meta, 1 << 20).unwrap();
        assert_eq!(codec::decode::<TreeMeta>("record", &bytes).unwrap(), meta, "{name}");
    }
}

#[test]
fn each_kind_has_a_sample_and_a_limit_on_both_sides() {
    let samples = messages();
    for kind in 0..=u16::MAX {
        let sampled = samples.iter().any(|(_, m)| m.kind() == kind);
        let Some(limit) = limit_of(kind) else {
            assert!(!sampled);
            let header = Header { version: VERSION, kind, length: 0 }.to_bytes();
            assert_eq!(Header::parse(&header, VERSION, limit_of), Err(WireError::UnknownKind(kind)));
            continue;
        };
        assert!(sampled, "no sample of kind {kind}");
        assert!(limit <= codec::MAX_BODY);
        let header = |length: usize| Header { version: VERSION, kind, length: length as u32 }.to_bytes();
        assert!(Header::parse(&header(limit), VERSION, limit_of).is_ok());
        let above = Header::parse(&header(limit + 1), VERSION, limit_of);
        assert!(matches!(above, Err(WireError::TooLong { .. })), "{kind}");
        let body = vec![0; limit + 1];
        assert!(matches!(Message::decode(kind, &body), Err(WireError::TooLong { .. })), "{kind}");
    }
}

#[test]
fn a_cut_message_is_an_error_at_every_byte() {
    for (name, frame) in frames() {
        if name.starts_with("record.") {
            continue;
        }
        let kind = u16::from_le_bytes([frame[6], frame[7]]);
        let body = &frame[HEADER_LEN..];
        for cut in 0..body.len() {
            assert!(Message::decode(kind, &body[..cut]).is_err(), "{name} cut to {cut} bytes");
        }
        let longer = [body, &[0]].concat();
        assert!(
            matches!(Message::decode(kind, &longer), Err(WireError::Trailing { extra: 1, .. })),
            "{name}"
        );
    }
}

#[test]
fn a_length_prefix_above_the_limit_allocates_nothing() {
    // Reply::Log with a length of 2^62 bytes: variant 4, marker 253 for a u64, the number.
    let mut body = vec![4, 253];
    body.extend_from_slice(&(1u64 << 62).to_le_bytes());
    body.extend_from_slice(&[0; 64]);
    assert!(matches!(Message::decode(4, &body), Err(WireError::Decode { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Anything at all: an error or a message, never a panic.
    #[test]
    fn random_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        kind in 0u16..8,
    ) {
        let _ = Message::from_frame(&bytes);
        let _ = Message::decode(kind, &bytes);
        if let Ok(meta) = codec::decode::<TreeMeta>("record", &bytes) {
            let _ = TreeRecord::join(meta, Vec::new());
        }
        if let Some(header) = bytes.first_chunk::<RECORD_HEADER_LEN>() {
            let _ = RecordHeader::parse(header);
        }
    }

    /// A real message with a few bytes changed: survived, and if it is one still, it can be sent.
    #[test]
    fn altered_messages_are_survived(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        static FRAMES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(frames);
        let (name, bytes) = which.get(&FRAMES);
        let mut bytes = bytes.clone();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if name.starts_with("record.") {
            if let Ok(meta) = codec::decode::<TreeMeta>("record", &bytes) {
                let _ = TreeRecord::join(meta, Vec::new());
            }
        } else if let Ok(message) = Message::from_frame(&bytes) {
            prop_assert!(message.to_frame(VERSION).is_ok());
        }
    }
}

/// A message whose lists are longer than allowed is refused before the lists are in memory.
#[test]
fn tiny_strings_do_not_become_megabytes() {
    for (name, list) in [("notices", 0), ("features", 1)] {
        let words = vec![String::new(); tranship_proto::handoff::MAX_WORDS + 1];
        let body = match list {
            0 => Handoff::Reserved { lease_ms: 1, notices: words, memory: MemoryMode::Plain },
            _ => Handoff::Reserve(Box::new(Offer { cpu_features: words, ..samples::offer() })),
        };
        let message = Message::from(Envelope { migration: samples::id(), epoch: Epoch(1), body });
        let frame = message.to_frame(VERSION).unwrap();
        let why = Message::from_frame(&frame).unwrap_err().to_string();
        assert!(why.contains("in a list"), "{name}: {why}");
    }
    let batch = PageBatch {
        pid: 1,
        zeros: vec![ZeroRun { vaddr: 0, pages: 1 }; tranship_proto::pages::MAX_RUNS + 1],
        ..PageBatch::default()
    };
    let bytes = codec::encode("batch", &batch, 1 << 20).unwrap();
    assert!(codec::decode::<PageBatch>("batch", &bytes).is_err());
}
