//! Tree records onto a bulk stream.

use super::work::failed;
use crate::storage::{SinkClosed, TreeSink};
use crate::transport::bulk::{BulkError, BulkWriter, Meter};
use crate::transport::endpoint::Connection;
use std::sync::Arc;
use tranship_proto::bulk::{BulkContent, BulkOpen, MAX_META, RecordKind};
use tranship_proto::codec;
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::status::Failure;
use tranship_proto::tree::TreeRecord;

/// Sends the records of one pass.
pub struct RecordSink {
    writer: BulkWriter,
    error: Option<BulkError>,
}

/// Opens the stream of one pass.
pub async fn open(
    connection: &Connection,
    migration: MigrationId,
    epoch: Epoch,
    index: u16,
    pass: u32,
    meter: Arc<Meter>,
) -> Result<RecordSink, Failure> {
    let open = BulkOpen { migration, epoch, content: BulkContent::Tree { index, pass } };
    let (writer, _) = BulkWriter::open(connection, open, meter)
        .await
        .map_err(|e| failed("open a stream for files", &e, None))?;
    Ok(RecordSink { writer, error: None })
}

impl TreeSink for RecordSink {
    fn send(&mut self, record: TreeRecord) -> Result<(), SinkClosed> {
        let (meta, data) = record.split();
        let sent = codec::encode("TreeMeta", &meta, MAX_META)
            .map_err(BulkError::from)
            .and_then(|meta| self.writer.record(RecordKind::Tree, &meta, &data));
        sent.map_err(|e| {
            self.error = Some(e);
            SinkClosed
        })
    }
}

impl RecordSink {
    /// Ends the stream well.
    pub fn finish(self) -> Result<(), BulkError> {
        self.writer.finish()
    }

    /// Why the stream ended, after a [`SinkClosed`].
    pub fn why(&self) -> Option<String> {
        self.error.as_ref().map(|e| crate::chain(e))
    }
}
