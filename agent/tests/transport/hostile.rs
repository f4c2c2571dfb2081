//! A peer whose bulk streams break the rules.

use crate::pair::{Pair, open};
use tokio::sync::watch;
use tranship_agent::transport::bulk::{BulkError, BulkReader, Record, accept_open};
use tranship_agent::transport::framing::FrameError;
use tranship_proto::bulk::{MAX_DATA, RecordHeader, RecordKind};
use tranship_proto::error::WireError;
use tranship_proto::handoff::{Envelope, Handoff};
use tranship_proto::registry::Message;

/// What the far end reads when the near end sends these bytes after the start of a bulk stream.
async fn read(pair: &Pair, bytes: Vec<u8>) -> Result<Vec<Record>, BulkError> {
    let mut send = pair.near.quic.open_uni().await.unwrap();
    let frame = Message::from(open(0)).to_frame(pair.near.version).unwrap();
    send.write_all(&frame).await.unwrap();
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    let mut recv = pair.far.quic.accept_uni().await.unwrap();
    accept_open(&mut recv, pair.far.version).await.unwrap();
    let (_keep, given_up) = watch::channel(false);
    let mut reader = BulkReader::start(recv, given_up).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        while let Some(record) = reader.read()? {
            all.push(record);
        }
        Ok(all)
    })
    .await
    .unwrap()
}

fn packed(raw_len: usize, wire: &[u8]) -> Vec<u8> {
    let header = RecordHeader {
        kind: RecordKind::ImageData,
        zstd: true,
        meta_len: 0,
        raw_len: u32::try_from(raw_len).unwrap(),
        wire_len: u32::try_from(wire.len()).unwrap(),
    };
    [header.to_bytes().as_slice(), wire].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_records_are_no_larger_than_they_say() {
    let pair = Pair::direct().await;
    let zstd = |n: usize| zstd::bulk::compress(&vec![0; n], 1).unwrap();
    // What is allowed, to its last byte.
    let records = read(&pair, packed(MAX_DATA, &zstd(MAX_DATA))).await.unwrap();
    assert_eq!(records[0].data, vec![0; MAX_DATA]);
    // A bomb: 256 MiB in a few kilobytes, announced as one.
    let bomb = zstd(256 << 20);
    assert!(bomb.len() < 64 << 10);
    for (announced, wire) in [(MAX_DATA, &bomb), (MAX_DATA, &zstd(MAX_DATA + 1)), (99_999, &zstd(100_000))] {
        let error = read(&pair, packed(announced, wire)).await.unwrap_err();
        assert!(matches!(error, BulkError::Wire(WireError::Decode { .. })), "{error:?}");
    }
    // Shorter than it says, and no zstd at all.
    for wire in [zstd(100_000), vec![7; 50]] {
        let error = read(&pair, packed(100_001, &wire)).await.unwrap_err();
        assert!(matches!(error, BulkError::Wire(WireError::Decode { .. })), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_lie_are_refused_before_their_data() {
    let pair = Pair::direct().await;
    let good = packed(1000, &zstd::bulk::compress(&[0; 1000], 1).unwrap());
    for (at, value) in [(0, 99u8), (2, 2), (7, 1), (11, 1), (15, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        let error = read(&pair, bad).await.unwrap_err();
        assert!(matches!(error, BulkError::Wire(_)), "byte {at}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_inside_a_record_is_an_error() {
    let pair = Pair::direct().await;
    let good = packed(1000, &zstd::bulk::compress(&[0; 1000], 1).unwrap());
    for length in [1, 15, 16, good.len() - 1] {
        let error = read(&pair, good[..length].to_vec()).await.unwrap_err();
        assert!(matches!(error, BulkError::Stream(_)), "{length} bytes: {error:?}");
    }
    assert_eq!(read(&pair, Vec::new()).await.unwrap().len(), 0, "the next room tells cut from short");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_stream_starts_as_one() {
    let pair = Pair::direct().await;
    let start = open(0);
    let other = Envelope { migration: start.migration, epoch: start.epoch, body: Handoff::Query };
    let mut send = pair.near.quic.open_uni().await.unwrap();
    send.write_all(&Message::from(other).to_frame(pair.near.version).unwrap()).await.unwrap();
    let mut recv = pair.far.quic.accept_uni().await.unwrap();
    let error = accept_open(&mut recv, pair.far.version).await.unwrap_err();
    assert!(matches!(error, FrameError::Unexpected { got: "Handoff", want: "BulkOpen" }), "{error:?}");
}
