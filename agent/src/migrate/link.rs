//! The stream that one migration's messages travel on, seen from either side.
//!
//! A link is one bidirectional QUIC stream. It is lost as a whole: when reading or writing fails,
//! [`LinkWord::Lost`] comes once and the link is done. After the commit a new one is made; its
//! generation tells late words of an old link from the new one's.

use crate::transport::endpoint::Connection;
use crate::transport::framing::{FrameError, read_message, write_message};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tranship_proto::handoff::{Envelope, Handoff};
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::registry::Message;

/// Messages waiting to be sent. The protocol is a dialogue: more than a few means a stuck peer.
const QUEUE: usize = 32;

/// What comes over a link.
#[derive(Debug)]
pub struct LinkEvent {
    /// Generation of the link it came over.
    pub generation: u64,
    /// What came.
    pub what: LinkWord,
}

/// A message, or the end.
#[derive(Debug)]
pub enum LinkWord {
    /// The peer spoke.
    Message(Handoff),
    /// The link is gone.
    Lost(String),
}

/// An open link.
#[derive(Debug)]
pub struct Link {
    /// The connection below, for bulk streams and the round-trip time.
    pub connection: Connection,
    /// Number of this link within the migration.
    pub generation: u64,
    migration: MigrationId,
    epoch: Epoch,
    queue: mpsc::Sender<Envelope>,
}

impl Link {
    /// Opens a link as the side that connects.
    pub async fn open(
        connection: Connection,
        migration: MigrationId,
        epoch: Epoch,
        generation: u64,
        events: mpsc::Sender<LinkEvent>,
    ) -> Result<Self, quinn::ConnectionError> {
        let (send, recv) = connection.quic.open_bi().await?;
        Ok(Self::start(connection, send, recv, migration, epoch, generation, events))
    }

    /// Takes up a link on streams whose first message was read by the caller.
    pub fn start(
        connection: Connection,
        send: SendStream,
        recv: RecvStream,
        migration: MigrationId,
        epoch: Epoch,
        generation: u64,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        let version = connection.version;
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(send, version, waiting));
        tokio::spawn(read_all(recv, version, migration, epoch, generation, events));
        Self { connection, generation, migration, epoch, queue }
    }

    /// Queues a message. `false` when the link is gone or stuck; the loss is reported by itself.
    pub fn send(&self, body: Handoff) -> bool {
        self.sender().send(body)
    }

    /// A handle that can send, for a task that outlives a borrow of the link.
    pub fn sender(&self) -> LinkSender {
        LinkSender { migration: self.migration, epoch: self.epoch, queue: self.queue.clone() }
    }
}

/// The sending half of a [`Link`].
#[derive(Debug, Clone)]
pub struct LinkSender {
    migration: MigrationId,
    epoch: Epoch,
    queue: mpsc::Sender<Envelope>,
}

impl LinkSender {
    /// As [`Link::send`].
    pub fn send(&self, body: Handoff) -> bool {
        let envelope = Envelope { migration: self.migration, epoch: self.epoch, body };
        self.queue.try_send(envelope).is_ok()
    }
}

async fn write_all(mut send: SendStream, version: u16, mut waiting: mpsc::Receiver<Envelope>) {
    while let Some(envelope) = waiting.recv().await {
        // The reader of the same link reports the loss.
        if write_message(&mut send, version, envelope).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

async fn read_all(
    mut recv: RecvStream,
    version: u16,
    migration: MigrationId,
    epoch: Epoch,
    generation: u64,
    events: mpsc::Sender<LinkEvent>,
) {
    loop {
        let what = match read_message(&mut recv, version).await {
            Ok(Message::Handoff(e)) if (e.migration, e.epoch) == (migration, epoch) => {
                LinkWord::Message(e.body)
            }
            Ok(Message::Handoff(e)) => {
                LinkWord::Lost(format!("the peer spoke of migration {} epoch {}", e.migration, e.epoch))
            }
            Ok(other) => LinkWord::Lost(format!("the peer sent {} into a hand-over", other.name())),
            Err(FrameError::Closed) => LinkWord::Lost("the peer closed it".into()),
            Err(e) => LinkWord::Lost(crate::chain(&e)),
        };
        let last = matches!(what, LinkWord::Lost(_));
        if events.send(LinkEvent { generation, what }).await.is_err() || last {
            return;
        }
    }
}
