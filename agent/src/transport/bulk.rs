//! Bulk streams: a blocking writer and reader around one QUIC stream each.
//!
//! The work on contents (reading disks, hashing, compressing) is blocking and runs on threads of
//! its own; a pump task moves finished records between a short queue and the stream. The queue is
//! the only buffer, so back-pressure from the network reaches whoever reads the container. A
//! writer that goes away without [`BulkWriter::finish`] resets the stream: a cut stream can never
//! look complete.

use super::endpoint::Connection;
use super::framing::{FrameError, read_message};
pub use super::meter::Meter;
use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot};
use tranship_proto::bulk::{BulkOpen, MAX_DATA, RECORD_HEADER_LEN, RecordHeader, RecordKind};
use tranship_proto::error::WireError;
use tranship_proto::registry::Message;

/// Records waiting between a worker thread and the network. Eight of at most 1 MiB keep both busy
/// and cost little.
const QUEUE: usize = 8;
/// zstd level: memory images gain little from more, and the freeze waits for it.
const LEVEL: i32 = 1;
/// Shorter data is not worth a compressor's start.
const MIN_COMPRESS: usize = 256;
/// After this many records that did not shrink, only one in as many is tried.
const PATIENCE: u32 = 16;

/// Why a bulk stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The stream or the connection failed, or the peer gave up.
    #[error("the bulk stream failed: {0}")]
    Stream(String),
    /// The peer's records are not acceptable.
    #[error("the peer's bulk records are not acceptable")]
    Wire(#[from] WireError),
    /// The stream ended without its end record.
    #[error("the bulk stream was cut after {records} records")]
    Cut {
        /// Records before the cut.
        records: u64,
    },
}

enum Item {
    Chunk(Bytes),
    Finish,
}

/// Writes records; blocking.
pub struct BulkWriter {
    queue: mpsc::Sender<Item>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    dull: u32,
    meter: Arc<Meter>,
}

/// Resolves when everything was delivered to the peer's transport, or with why not.
pub type Delivery = oneshot::Receiver<Result<(), BulkError>>;

impl BulkWriter {
    /// Opens a bulk stream on a connection. Must be called inside the runtime.
    pub async fn open(
        connection: &Connection,
        open: BulkOpen,
        meter: Arc<Meter>,
    ) -> Result<(Self, Delivery), BulkError> {
        let stream = |e: &dyn std::fmt::Display| BulkError::Stream(e.to_string());
        let mut send = connection.quic.open_uni().await.map_err(|e| stream(&e))?;
        // Control messages go first when both wait.
        let _ = send.set_priority(-1);
        let frame = Message::from(open).to_frame(connection.version)?;
        send.write_all(&frame).await.map_err(|e| stream(&e))?;
        let (queue, rx) = mpsc::channel(QUEUE);
        let (done, delivery) = oneshot::channel();
        tokio::spawn(async move {
            let _ = done.send(pump_out(send, rx).await);
        });
        let compressor = zstd::bulk::Compressor::new(LEVEL).ok();
        Ok((Self { queue, compressor, dull: 0, meter }, delivery))
    }

    /// Sends one record. Blocks while the queue is full.
    pub fn record(&mut self, kind: RecordKind, meta: &[u8], data: &[u8]) -> Result<(), BulkError> {
        let packed = self.pack(data);
        let wire = packed.as_deref().unwrap_or(data);
        let length = |n: usize| {
            u32::try_from(n).map_err(|_| BulkError::Wire(WireError::invalid("record", "longer than 4 GiB")))
        };
        let header = RecordHeader {
            kind,
            zstd: packed.is_some(),
            meta_len: length(meta.len())?,
            raw_len: length(data.len())?,
            wire_len: length(wire.len())?,
        };
        let mut out = Vec::with_capacity(RECORD_HEADER_LEN + meta.len() + wire.len());
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(meta);
        out.extend_from_slice(wire);
        self.meter.read.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.meter.sent.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.put(Item::Chunk(out.into()))
    }

    /// Ends the stream well.
    pub fn finish(self) -> Result<(), BulkError> {
        self.put(Item::Finish)
    }

    fn put(&self, item: Item) -> Result<(), BulkError> {
        self.queue.blocking_send(item).map_err(|_| BulkError::Stream("the peer no longer takes it".into()))
    }

    fn pack(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        if data.len() < MIN_COMPRESS {
            return None;
        }
        // Incompressible data comes in long runs; look again now and then.
        if self.dull >= PATIENCE {
            self.dull += 1;
            if !self.dull.is_multiple_of(PATIENCE) {
                return None;
            }
        }
        let packed = self.compressor.as_mut()?.compress(data).ok()?;
        if packed.len() < data.len() - data.len() / 16 {
            self.dull = 0;
            Some(packed)
        } else {
            self.dull = self.dull.saturating_add(1);
            None
        }
    }
}

async fn pump_out(mut send: SendStream, mut queue: mpsc::Receiver<Item>) -> Result<(), BulkError> {
    loop {
        match queue.recv().await {
            Some(Item::Chunk(bytes)) => {
                send.write_chunk(bytes).await.map_err(|e| BulkError::Stream(e.to_string()))?;
            }
            Some(Item::Finish) => break,
            None => {
                let _ = send.reset(VarInt::from_u32(1));
                return Err(BulkError::Stream("given up before its end".into()));
            }
        }
    }
    send.finish().map_err(|e| BulkError::Stream(e.to_string()))?;
    match send.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(BulkError::Stream(format!("the peer stopped it with code {code}"))),
        Err(e) => Err(BulkError::Stream(e.to_string())),
    }
}

/// A record as it came, its data still packed.
struct RawRecord {
    header: RecordHeader,
    meta: Vec<u8>,
    wire: Vec<u8>,
}

/// A record, its data unpacked.
#[derive(Debug)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Serialized metadata.
    pub meta: Vec<u8>,
    /// At most [`MAX_DATA`] bytes.
    pub data: Vec<u8>,
}

/// Reads records; the network half runs as a task, the rest blocks.
pub struct BulkReader {
    queue: mpsc::Receiver<Result<RawRecord, BulkError>>,
    unpacker: zstd::bulk::Decompressor<'static>,
    records: u64,
}

/// Reads the first message of a unidirectional stream.
pub async fn accept_open(recv: &mut RecvStream, version: u16) -> Result<BulkOpen, FrameError> {
    match read_message(recv, version).await? {
        Message::BulkOpen(open) => Ok(open),
        other => Err(FrameError::Unexpected { got: other.name(), want: "BulkOpen" }),
    }
}

impl BulkReader {
    /// Starts reading a stream whose [`BulkOpen`] was read. Must be called inside the runtime.
    pub fn start(recv: RecvStream) -> std::io::Result<Self> {
        let (tx, queue) = mpsc::channel(QUEUE);
        tokio::spawn(pump_in(recv, tx));
        Ok(Self { queue, unpacker: zstd::bulk::Decompressor::new()?, records: 0 })
    }

    /// The next record with its data unpacked, or `None` at the end of the stream. Blocks.
    pub fn read(&mut self) -> Result<Option<Record>, BulkError> {
        let Some(item) = self.queue.blocking_recv() else { return Ok(None) };
        let raw = item?;
        self.records += 1;
        let data = if raw.header.zstd { self.unpack(&raw)? } else { raw.wire };
        Ok(Some(Record { kind: raw.header.kind, meta: raw.meta, data }))
    }

    /// The error for an end that came too early.
    pub fn cut(&self) -> BulkError {
        BulkError::Cut { records: self.records }
    }

    fn unpack(&mut self, raw: &RawRecord) -> Result<Vec<u8>, BulkError> {
        let want = raw.header.raw_len as usize;
        debug_assert!(want <= MAX_DATA, "checked by RecordHeader::parse");
        let data = self
            .unpacker
            .decompress(&raw.wire, want)
            .map_err(|e| WireError::Decode { what: "compressed record", why: e.to_string() })?;
        if data.len() != want {
            let why = format!("{} bytes instead of {want}", data.len());
            return Err(WireError::Decode { what: "compressed record", why }.into());
        }
        Ok(data)
    }
}

async fn pump_in(mut recv: RecvStream, queue: mpsc::Sender<Result<RawRecord, BulkError>>) {
    loop {
        match read_record(&mut recv).await {
            Ok(Some(record)) => {
                if queue.send(Ok(record)).await.is_err() {
                    // The worker gave up: tell the peer to stop sending.
                    let _ = recv.stop(VarInt::from_u32(2));
                    return;
                }
            }
            Ok(None) => return,
            Err(e) => {
                let _ = queue.send(Err(e)).await;
                let _ = recv.stop(VarInt::from_u32(2));
                return;
            }
        }
    }
}

async fn read_record(recv: &mut RecvStream) -> Result<Option<RawRecord>, BulkError> {
    use quinn::ReadExactError;
    let stream = |e: ReadExactError| BulkError::Stream(e.to_string());
    let mut header = [0; RECORD_HEADER_LEN];
    match recv.read_exact(&mut header).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(e) => return Err(stream(e)),
    }
    let header = RecordHeader::parse(&header)?;
    let mut meta = vec![0; header.meta_len as usize];
    recv.read_exact(&mut meta).await.map_err(stream)?;
    let mut wire = vec![0; header.wire_len as usize];
    recv.read_exact(&mut wire).await.map_err(stream)?;
    Ok(Some(RawRecord { header, meta, wire }))
}
