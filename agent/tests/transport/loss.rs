//! Bulk streams over a wire that loses packets.

use crate::pair::{Pair, open};
use crate::wire::Wire;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tranship_agent::transport::bulk::{BulkReader, BulkWriter, Meter, accept_open};
use tranship_proto::bulk::{BulkContent, RecordKind};

const STREAMS: u16 = 2;
const RECORD: usize = 512 << 10;
const RECORDS: u64 = 40;

/// Bytes that do not shrink, and that differ from record to record.
fn noise(stream: u16, record: u64) -> Vec<u8> {
    let mut hash = blake3::Hasher::new();
    hash.update(&stream.to_le_bytes()).update(&record.to_le_bytes());
    let mut out = vec![0; RECORD];
    hash.finalize_xof().fill(&mut out);
    out
}

/// A slow wire whose queue is full drops every second packet of what is on its way. quinn takes a
/// stream with more than 1024 gaps for an attack and closes the connection ("too many gaps"), so
/// windows must not let so much be on its way. With windows of 16 MiB this test fails.
#[tokio::test(flavor = "multi_thread")]
async fn every_second_packet_of_megabytes_may_be_lost() {
    let wire = Wire {
        delay: Duration::from_millis(150),
        // What QUIC needs at least: the most packets for a window.
        max_payload: 1252,
        // Enough for a congestion window of many megabytes. Then a round trip of losses.
        sound: 16 << 20,
        bad: Duration::from_millis(400),
    };
    let mut lost = None;
    let pair = Pair::over(|far| {
        let (address, count) = wire.start(far);
        lost = Some(count);
        address
    })
    .await;
    let meter = Arc::new(Meter::default());
    let mut writers = Vec::new();
    for index in 0..STREAMS {
        let (mut writer, delivery) = BulkWriter::open(&pair.near, open(index), meter.clone()).await.unwrap();
        writers.push(tokio::task::spawn_blocking(move || {
            for record in 0..RECORDS {
                writer.record(RecordKind::Tree, &record.to_le_bytes(), &noise(index, record))?;
            }
            writer.finish().map(|()| delivery)
        }));
    }
    let (_keep, given_up) = watch::channel(false);
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut recv = pair.far.quic.accept_uni().await.unwrap();
        let BulkContent::Tree { index, .. } = accept_open(&mut recv, pair.far.version).await.unwrap().content
        else {
            panic!("not what was opened")
        };
        let mut reader = BulkReader::start(recv, given_up.clone()).unwrap();
        readers.push(tokio::task::spawn_blocking(move || {
            let mut next = 0u64;
            while let Some(record) = reader.read().unwrap() {
                assert_eq!(record.meta, next.to_le_bytes());
                assert!(record.data == noise(index, next), "stream {index}, record {next}");
                next += 1;
            }
            next
        }));
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), RECORDS);
    }
    for writer in writers {
        writer.await.unwrap().unwrap().await.unwrap().unwrap();
    }
    let lost = lost.unwrap().load(Ordering::Relaxed);
    assert!(lost > 400, "{lost} packets lost: the test has tested nothing");
}
