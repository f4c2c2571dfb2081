//! Bulk streams under a cap, and with a peer that is alive and does nothing.

use crate::pair::{Pair, open};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tranship_agent::transport::bulk::{BulkError, BulkReader, BulkWriter, Meter, accept_open};
use tranship_agent::transport::endpoint::MAX_BULK_STREAMS;
use tranship_proto::bulk::RecordKind;

const MIB: usize = 1 << 20;
/// Within which a stream that is given up lets go of whoever waits for it.
const SOON: Duration = Duration::from_secs(1);

/// Reads streams to their ends and throws them away.
async fn swallow(pair: &Pair, streams: usize) {
    let (_keep, given_up) = watch::channel(false);
    let mut all = Vec::new();
    for _ in 0..streams {
        let mut recv = pair.far.quic.accept_uni().await.unwrap();
        accept_open(&mut recv, pair.far.version).await.unwrap();
        let mut reader = BulkReader::start(recv, given_up.clone()).unwrap();
        all.push(tokio::task::spawn_blocking(move || while reader.read().unwrap().is_some() {}));
    }
    for one in all {
        one.await.unwrap();
    }
}

async fn send(pair: &Pair, meter: &Arc<Meter>, index: u16, data: &'static [u8], records: usize) {
    let (mut writer, delivery) = BulkWriter::open(&pair.near, open(index), meter.clone()).await.unwrap();
    tokio::task::spawn_blocking(move || {
        for _ in 0..records {
            writer.record(RecordKind::Tree, b"", data).unwrap();
        }
        writer.finish().unwrap();
    })
    .await
    .unwrap();
    delivery.await.unwrap().unwrap();
}

fn noise() -> &'static [u8] {
    let mut out = vec![0; MIB];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out.leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_streams_of_a_migration_share_its_bandwidth() {
    let pair = Pair::direct().await;
    let meter = Arc::new(Meter::capped(Some(4 * MIB as u64)));
    let data = noise();
    let start = Instant::now();
    tokio::join!(
        swallow(&pair, 3),
        send(&pair, &meter, 0, data, 2),
        send(&pair, &meter, 1, data, 2),
        send(&pair, &meter, 2, data, 2),
    );
    let took = start.elapsed();
    // 6 MiB at 4 MiB/s. Less is a broken promise; more is a busy machine.
    assert!(took > Duration::from_millis(1400), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(meter.sent.load(Ordering::Relaxed) >= 6 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_shrinks_on_a_slow_wire() {
    let pair = Pair::direct().await;
    let meter = Arc::new(Meter::capped(Some(8 * MIB as u64)));
    let text: Vec<u8> = (0..MIB / 4).flat_map(|n| ((n % 977) as u32).to_le_bytes()).collect();
    tokio::join!(swallow(&pair, 1), send(&pair, &meter, 0, text.leak(), 64));
    let (read, sent) = (meter.read.load(Ordering::Relaxed), meter.sent.load(Ordering::Relaxed));
    assert_eq!(read, 64 * MIB as u64);
    // What travels before the wire is known to be slow travels as it is.
    assert!(sent < read / 2, "{sent} of {read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_keeps_no_worker() {
    let pair = Pair::direct().await;
    let meter = Arc::new(Meter::default());
    let data = noise();
    let (mut writer, delivery) = BulkWriter::open(&pair.near, open(0), meter.clone()).await.unwrap();
    let worker = tokio::task::spawn_blocking(move || {
        loop {
            if let Err(e) = writer.record(RecordKind::Tree, b"", data) {
                return (e, Instant::now());
            }
        }
    });
    // The window and the queue are full: the worker waits.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = meter.sent.load(Ordering::Relaxed);
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    assert!(!worker.is_finished());
    let told = Instant::now();
    meter.give_up(true);
    let (error, at) = worker.await.unwrap();
    assert!(matches!(error, BulkError::GivenUp), "{error}");
    assert!(at - told < SOON, "{:?}", at - told);
    assert!(matches!(delivery.await.unwrap(), Err(BulkError::GivenUp)));
    // The peer sees a cut stream, whatever it has read of it.
    let mut recv = pair.far.quic.accept_uni().await.unwrap();
    let end = loop {
        match recv.read_chunk(MIB, true).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Err(quinn::ReadError::Reset(_))), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_nothing_keeps_no_worker() {
    let pair = Pair::direct().await;
    let (_writer, _delivery) =
        BulkWriter::open(&pair.near, open(0), Arc::new(Meter::default())).await.unwrap();
    let mut recv = pair.far.quic.accept_uni().await.unwrap();
    accept_open(&mut recv, pair.far.version).await.unwrap();
    let (give_up, given_up) = watch::channel(false);
    let mut reader = BulkReader::start(recv, given_up).unwrap();
    let worker = tokio::task::spawn_blocking(move || (reader.read(), Instant::now()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!worker.is_finished());
    let told = Instant::now();
    give_up.send_replace(true);
    let (result, at) = worker.await.unwrap();
    assert!(matches!(result, Err(BulkError::GivenUp)));
    assert!(at - told < SOON, "{:?}", at - told);
}

/// Why is told over the link, and what this side concludes from it would come back as its own failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_peer_gives_up_says_nothing_by_itself() {
    let pair = Pair::direct().await;
    let (writer, _delivery) =
        BulkWriter::open(&pair.near, open(0), Arc::new(Meter::default())).await.unwrap();
    let mut recv = pair.far.quic.accept_uni().await.unwrap();
    accept_open(&mut recv, pair.far.version).await.unwrap();
    let (give_up, given_up) = watch::channel(false);
    let mut reader = BulkReader::start(recv, given_up).unwrap();
    let worker = tokio::task::spawn_blocking(move || reader.read());
    drop(writer);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!worker.is_finished());
    give_up.send_replace(true);
    let result = tokio::time::timeout(SOON, worker).await.unwrap().unwrap();
    assert!(matches!(result, Err(BulkError::GivenUp)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_grants_no_stream_keeps_no_step() {
    let pair = Pair::direct().await;
    let meter = Arc::new(Meter::default());
    let mut held = Vec::new();
    loop {
        let one = BulkWriter::open(&pair.near, open(0), meter.clone());
        match tokio::time::timeout(Duration::from_millis(300), one).await {
            Ok(stream) => held.push(stream.unwrap()),
            Err(_) => break,
        }
        assert!(held.len() <= MAX_BULK_STREAMS as usize, "streams without a limit");
    }
    let (near, waiting) = (pair.near.clone(), meter.clone());
    let step = tokio::spawn(async move { BulkWriter::open(&near, open(0), waiting).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    meter.give_up(true);
    let result = tokio::time::timeout(SOON, step).await.unwrap().unwrap();
    assert!(matches!(result, Err(BulkError::GivenUp)));
}
