//! The way of records to the sink: counted and chained by a digest.

use tranship_proto::tree::{Entry, TreeRecord};

use super::digest::PassDigest;
use super::error::{StorageError, shown};
use super::source::TreeSink;

/// Counts and digests records on their way to the sink.
pub(super) struct Out<'a> {
    sink: &'a mut dyn TreeSink,
    digest: PassDigest,
    entries: u64,
    data_bytes: u64,
}

impl<'a> Out<'a> {
    pub(super) fn new(sink: &'a mut dyn TreeSink) -> Self {
        Self { sink, digest: PassDigest::new(), entries: 0, data_bytes: 0 }
    }

    pub(super) fn send(&mut self, record: TreeRecord) -> Result<(), StorageError> {
        self.digest.add(&record);
        match &record {
            TreeRecord::Entry(_) | TreeRecord::Remove { .. } => self.entries += 1,
            TreeRecord::Data { data, .. } => self.data_bytes += data.len() as u64,
            _ => {}
        }
        self.sink.send(record).map_err(|_| StorageError::SinkClosed)
    }

    pub(super) fn entry(&mut self, entry: Entry) -> Result<(), StorageError> {
        // What this host's file system allows may still be more than what may travel.
        entry
            .check()
            .map_err(|e| StorageError::NotCarried { path: shown(&entry.path), why: e.to_string() })?;
        self.send(TreeRecord::Entry(entry))
    }

    /// Ends the pass; gives the number of entries and data bytes.
    pub(super) fn finish(mut self) -> Result<(u64, u64), StorageError> {
        let (entries, data_bytes, digest) = (self.entries, self.data_bytes, self.digest.value());
        self.send(TreeRecord::PassEnd { entries, data_bytes, digest })?;
        Ok((entries, data_bytes))
    }
}
