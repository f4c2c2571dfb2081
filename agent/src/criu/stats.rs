//! `stats-dump` and `stats-restore`, which CRIU leaves in its work directory (images/stats.proto).
//!
//! Layout: service magic, statistics magic, length, one message; all little endian on the machines CRIU
//! runs on. What the file says is shown to people and never decides anything.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use prost::Message;
use serde::{Deserialize, Serialize};

const SERVICE_MAGIC: u32 = 0x5510_5940;
const STATS_MAGIC: u32 = 0x5709_3306;
/// A statistics file is some dozen bytes; more is not one.
const MAX_FILE: u64 = 4096;

/// What CRIU measured while it dumped. Times in microseconds, pages of 4096 bytes.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct DumpStats {
    /// Until all processes were stopped.
    #[prost(uint32, tag = "1")]
    pub freezing_time: u32,
    /// While CRIU held them stopped, hooks included.
    #[prost(uint32, tag = "2")]
    pub frozen_time: u32,
    /// Collecting memory.
    #[prost(uint32, tag = "3")]
    pub memdump_time: u32,
    /// Of that, writing it.
    #[prost(uint32, tag = "4")]
    pub memwrite_time: u32,
    /// Private pages looked at.
    #[prost(uint64, tag = "5")]
    pub pages_scanned: u64,
    /// Of those, unchanged since the parent images.
    #[prost(uint64, tag = "6")]
    pub pages_skipped_parent: u64,
    /// Of those, written.
    #[prost(uint64, tag = "7")]
    pub pages_written: u64,
    /// Of those, left for lazy copying.
    #[prost(uint64, tag = "9")]
    pub pages_lazy: u64,
    /// Shared pages looked at.
    #[prost(uint64, optional, tag = "12")]
    pub shpages_scanned: Option<u64>,
    /// Of those, written.
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// What CRIU measured while it restored. Times in microseconds.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct RestoreStats {
    /// Until all processes existed.
    #[prost(uint32, tag = "3")]
    pub forking_time: u32,
    /// All of the restore, hooks included.
    #[prost(uint32, tag = "4")]
    pub restore_time: u32,
    /// Pages filled.
    #[prost(uint64, optional, tag = "5")]
    pub pages_restored: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
    #[prost(message, optional, tag = "2")]
    restore: Option<RestoreStats>,
}

/// Why a statistics file was not understood.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// It could not be read.
    #[error("cannot read criu statistics: {0}")]
    Io(#[from] io::Error),
    /// It is not what it should be.
    #[error("bad criu statistics: {0}")]
    Format(&'static str),
}

fn entry(bytes: &[u8]) -> Result<Entry, StatsError> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if word(0) != Some(SERVICE_MAGIC) || word(4) != Some(STATS_MAGIC) {
        return Err(StatsError::Format("magic number"));
    }
    let length = word(8).ok_or(StatsError::Format("no length"))? as usize;
    let body = bytes.get(12..).and_then(|b| b.get(..length)).ok_or(StatsError::Format("cut short"))?;
    Entry::decode(body).map_err(|_| StatsError::Format("message"))
}

/// Reads the content of a `stats-dump` file.
pub fn parse_dump_stats(bytes: &[u8]) -> Result<DumpStats, StatsError> {
    entry(bytes)?.dump.ok_or(StatsError::Format("no dump part"))
}

/// Reads the content of a `stats-restore` file.
pub fn parse_restore_stats(bytes: &[u8]) -> Result<RestoreStats, StatsError> {
    entry(bytes)?.restore.ok_or(StatsError::Format("no restore part"))
}

fn load(path: &Path) -> Result<Vec<u8>, StatsError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(StatsError::Format("too long"));
    }
    Ok(bytes)
}

/// Reads a `stats-dump` file.
pub fn read_dump_stats(path: &Path) -> Result<DumpStats, StatsError> {
    parse_dump_stats(&load(path)?)
}

/// Reads a `stats-restore` file.
pub fn read_restore_stats(path: &Path) -> Result<RestoreStats, StatsError> {
    parse_restore_stats(&load(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(entry: &Entry) -> Vec<u8> {
        let body = entry.encode_to_vec();
        let mut bytes = Vec::new();
        for word in [SERVICE_MAGIC, STATS_MAGIC, body.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&body);
        bytes
    }

    #[test]
    fn reads_what_criu_writes() {
        // stats-dump of CRIU 4.2.1 for a small Redis.
        let bytes = include_bytes!("../../tests/data/stats-dump");
        let stats = parse_dump_stats(bytes).unwrap();
        assert!(
            stats.frozen_time > 1000
                && stats.pages_written > 100
                && stats.pages_scanned >= stats.pages_written,
            "{stats:?}"
        );
        let stats = parse_restore_stats(include_bytes!("../../tests/data/stats-restore")).unwrap();
        assert!(stats.restore_time > 1000 && stats.pages_restored > Some(100), "{stats:?}");
    }

    #[test]
    fn refuses_the_other_kind_and_cut_files() {
        let dump = Entry { dump: Some(DumpStats { frozen_time: 7, ..Default::default() }), restore: None };
        let bytes = file(&dump);
        assert_eq!(parse_dump_stats(&bytes).unwrap().frozen_time, 7);
        assert!(parse_restore_stats(&bytes).is_err());
        for cut in 0..bytes.len() {
            assert!(parse_dump_stats(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic: bool) {
            if with_magic && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(&[SERVICE_MAGIC.to_le_bytes(), STATS_MAGIC.to_le_bytes()].concat());
            }
            let _ = parse_dump_stats(&bytes);
            let _ = parse_restore_stats(&bytes);
        }
    }
}
