//! Bulk streams: a blocking writer and reader around one QUIC stream each.
//!
//! The work on contents (reading disks, hashing, compressing) is blocking and runs on threads of
//! its own; a pump task moves finished records between a short queue and the stream. The queue is
//! the only buffer, so back-pressure from the network reaches whoever reads the container. A
//! writer that goes away without [`BulkWriter::finish`] resets the stream: a cut stream can never
//! look complete. Both ends give a stream up when they are told to ([`Meter::give_up`]), so that a
//! peer which is alive and does nothing keeps no worker.

use super::endpoint::Connection;
use super::framing::{FrameError, read_message};
use super::incoming::{Incoming, RawRecord};
pub use super::meter::Meter;
use super::squeeze::{Drain, DrainMeter, Squeeze};
use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tranship_proto::bulk::{BulkOpen, MAX_DATA, RecordHeader, RecordKind};
use tranship_proto::error::WireError;
use tranship_proto::registry::Message;

/// What waits between a worker thread and the network. Eight of at most 1 MiB keep both busy and cost
/// little.
const QUEUE: usize = 8;
/// Data that is copied behind its header rather than queued by itself.
const SHORT: usize = 8 << 10;
/// Short records that are queued together, in bytes: waking the pump costs more than one of them does.
const TOGETHER: usize = 32 << 10;
/// Pieces of a stream, each what one packet had of it, that are taken from the transport at once.
const PIECES: usize = 32;
/// Most bytes that take their turn under a cap together.
const SLICE: usize = 64 << 10;

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
    /// This side was told to end it.
    #[error("the bulk stream was given up")]
    GivenUp,
    /// The peer has ended it before its end.
    #[error("the peer gave the bulk stream up")]
    Reset,
}

enum Item {
    Chunk(Bytes),
    Finish,
}

/// Writes records; blocking.
pub struct BulkWriter {
    queue: mpsc::Sender<Item>,
    // Records that wait for company.
    short: Vec<u8>,
    squeeze: Squeeze,
    drain: Arc<Drain>,
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
        let stream = |e: &(dyn std::error::Error + 'static)| BulkError::Stream(crate::chain(e));
        let opened = async {
            let mut send = connection.quic.open_uni().await.map_err(|e| stream(&e))?;
            // Control messages go first when both wait.
            let _ = send.set_priority(-1);
            let frame = Message::from(open).to_frame(connection.version)?;
            send.write_all(&frame).await.map_err(|e| stream(&e))?;
            Ok::<_, BulkError>(send)
        };
        // A peer that grants no stream would keep this waiting as well.
        let send = tokio::select! {
            send = opened => send?,
            () = meter.given_up() => return Err(BulkError::GivenUp),
        };
        let (queue, rx) = mpsc::channel(QUEUE);
        let (done, delivery) = oneshot::channel();
        let drain = Arc::new(Drain::default());
        let pump = pump_out(send, rx, meter.clone(), drain.clone());
        tokio::spawn(async move {
            let _ = done.send(pump.await);
        });
        Ok((Self { queue, short: Vec::new(), squeeze: Squeeze::new(), drain, meter }, delivery))
    }

    /// Sends one record; a short one with those that follow, or at the next [`Self::push`]. Blocks while the
    /// queue is full, until the stream is given up.
    ///
    /// # Errors
    /// [`BulkError::GivenUp`], or [`BulkError::Stream`] when the stream has failed; the
    /// [`Delivery`] says why.
    pub fn record(&mut self, kind: RecordKind, meta: &[u8], data: &[u8]) -> Result<(), BulkError> {
        let packed = self.squeeze.pack(data, &self.drain).map(Bytes::from);
        let zstd = packed.is_some();
        let wire = packed.unwrap_or_else(|| Bytes::copy_from_slice(data));
        self.put_record(kind, meta, data.len(), zstd, wire)
    }

    /// The same of data that need not be copied.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn record_owned(&mut self, kind: RecordKind, meta: &[u8], data: Bytes) -> Result<(), BulkError> {
        let packed = self.squeeze.pack(&data, &self.drain).map(Bytes::from);
        let (length, zstd) = (data.len(), packed.is_some());
        self.put_record(kind, meta, length, zstd, packed.unwrap_or(data))
    }

    fn put_record(
        &mut self,
        kind: RecordKind,
        meta: &[u8],
        raw_len: usize,
        zstd: bool,
        wire: Bytes,
    ) -> Result<(), BulkError> {
        let length = |n: usize| {
            u32::try_from(n).map_err(|_| BulkError::Wire(WireError::invalid("record", "longer than 4 GiB")))
        };
        let header = RecordHeader {
            kind,
            zstd,
            meta_len: length(meta.len())?,
            raw_len: length(raw_len)?,
            wire_len: length(wire.len())?,
        };
        let head = header.to_bytes();
        let all = head.len() + meta.len() + wire.len();
        self.meter.read.fetch_add(raw_len as u64, Ordering::Relaxed);
        self.meter.sent.fetch_add(all as u64, Ordering::Relaxed);
        self.short.extend_from_slice(&head);
        self.short.extend_from_slice(meta);
        if wire.len() <= SHORT {
            self.short.extend_from_slice(&wire);
            if self.short.len() >= TOGETHER {
                self.push()?;
            }
        } else {
            self.push()?;
            self.put(Item::Chunk(wire))?;
        }
        self.squeeze.left();
        Ok(())
    }

    /// Hands short records on, which wait for company otherwise.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn push(&mut self) -> Result<(), BulkError> {
        match std::mem::take(&mut self.short) {
            short if short.is_empty() => Ok(()),
            short => self.put(Item::Chunk(short.into())),
        }
    }

    /// Ends the stream well.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn finish(mut self) -> Result<(), BulkError> {
        self.push()?;
        self.put(Item::Finish)
    }

    fn put(&self, item: Item) -> Result<(), BulkError> {
        // The pump goes away when the stream is given up, which wakes whoever waits here.
        self.queue.blocking_send(item).map_err(|_| match self.meter.is_given_up() {
            true => BulkError::GivenUp,
            false => BulkError::Stream("the peer no longer takes it".into()),
        })
    }
}

/// Moves items from the queue to the stream until the end, a failure, or the word to give up.
async fn pump_out(
    mut send: SendStream,
    mut queue: mpsc::Receiver<Item>,
    meter: Arc<Meter>,
    drain: Arc<Drain>,
) -> Result<(), BulkError> {
    let result = tokio::select! {
        result = write_out(&mut send, &mut queue, &meter, &drain) => result,
        () = meter.given_up() => Err(BulkError::GivenUp),
    };
    if result.is_err() {
        let _ = send.reset(VarInt::from_u32(1));
    }
    result
}

async fn write_out(
    send: &mut SendStream,
    queue: &mut mpsc::Receiver<Item>,
    meter: &Meter,
    drain: &Drain,
) -> Result<(), BulkError> {
    let failed = |e: &(dyn std::error::Error + 'static)| BulkError::Stream(crate::chain(e));
    let mut rate = DrainMeter::default();
    loop {
        match queue.recv().await {
            Some(Item::Chunk(mut bytes)) => {
                let (length, start) = (bytes.len(), Instant::now());
                while !bytes.is_empty() {
                    let slice = bytes.split_to(bytes.len().min(SLICE));
                    meter.turn(slice.len()).await;
                    send.write_chunk(slice).await.map_err(|e| failed(&e))?;
                }
                rate.note(length, start.elapsed(), drain);
            }
            Some(Item::Finish) => break,
            None => return Err(BulkError::Stream("given up before its end".into())),
        }
    }
    send.finish().map_err(|e| failed(&e))?;
    match send.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(BulkError::Stream(format!("the peer stopped it with code {code}"))),
        Err(e) => Err(failed(&e)),
    }
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
    queue: mpsc::Receiver<Result<Vec<RawRecord>, BulkError>>,
    // Of the queue's last item.
    came: std::vec::IntoIter<RawRecord>,
    given_up: watch::Receiver<bool>,
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
    /// Starts reading a stream whose [`BulkOpen`] was read, until `given_up` turns true. Must be
    /// called inside the runtime. A stream that the peer resets has no next record until then.
    pub fn start(recv: RecvStream, given_up: watch::Receiver<bool>) -> std::io::Result<Self> {
        let (tx, queue) = mpsc::channel(QUEUE);
        tokio::spawn(pump_in(recv, tx, given_up.clone()));
        Ok(Self {
            queue,
            came: Vec::new().into_iter(),
            given_up,
            unpacker: zstd::bulk::Decompressor::new()?,
            records: 0,
        })
    }

    /// The next record with its data unpacked, or `None` at the end of the stream. Blocks.
    ///
    /// # Errors
    /// [`BulkError::GivenUp`] once this side was told so; else what is wrong with the stream.
    pub fn read(&mut self) -> Result<Option<Record>, BulkError> {
        if *self.given_up.borrow() {
            return Err(BulkError::GivenUp);
        }
        let raw = match self.came.next() {
            Some(raw) => raw,
            None => match self.queue.blocking_recv() {
                Some(came) => {
                    self.came = came?.into_iter();
                    return self.read();
                }
                None if *self.given_up.borrow() => return Err(BulkError::GivenUp),
                None => return Ok(None),
            },
        };
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

/// Moves records from the stream to the queue until the end, a failure, or the word to give up.
async fn pump_in(
    mut recv: RecvStream,
    queue: mpsc::Sender<Result<Vec<RawRecord>, BulkError>>,
    mut given_up: watch::Receiver<bool>,
) {
    let ended = tokio::select! {
        ended = read_in(&mut recv, &queue) => ended,
        _ = given_up.wait_for(|g| *g) => false,
    };
    if !ended {
        // Tell the peer to stop sending.
        let _ = recv.stop(VarInt::from_u32(2));
    }
}

/// Whether the stream was read to its end.
async fn read_in(recv: &mut RecvStream, queue: &mpsc::Sender<Result<Vec<RawRecord>, BulkError>>) -> bool {
    let mut incoming = Incoming::default();
    let mut pieces = [const { Bytes::new() }; PIECES];
    loop {
        let (item, last) = match read_pieces(recv, &mut incoming, &mut pieces).await {
            Ok(Some(whole)) if whole.is_empty() => continue,
            Ok(Some(whole)) => (Ok(whole), false),
            Ok(None) => return true,
            // The peer says why over the link. Reported here, its failure would come back to it as one of
            // this side's, and before it has said its own.
            Err(BulkError::Reset) => {
                queue.closed().await;
                return false;
            }
            Err(e) => (Err(e), true),
        };
        if queue.send(item).await.is_err() || last {
            return false;
        }
    }
}

/// The records that are completed by what has come, or `None` at the end of the stream.
async fn read_pieces(
    recv: &mut RecvStream,
    incoming: &mut Incoming,
    pieces: &mut [Bytes],
) -> Result<Option<Vec<RawRecord>>, BulkError> {
    let came = match recv.read_chunks(pieces).await {
        Ok(Some(came)) => came,
        Ok(None) if incoming.is_between() => return Ok(None),
        Ok(None) => return Err(BulkError::Stream("it ended within a record".into())),
        Err(quinn::ReadError::Reset(_)) => return Err(BulkError::Reset),
        Err(e) => return Err(BulkError::Stream(crate::chain(&e))),
    };
    let mut whole = Vec::new();
    for piece in &mut pieces[..came] {
        incoming.take(std::mem::take(piece), &mut whole)?;
    }
    Ok(Some(whole))
}
