//! Records out of what a stream brings, which is pieces of any length.
//!
//! Rejected: to read header, metadata and data with a call each, which for a thousand small records woke
//! two threads three thousand times, and to keep the pieces themselves: one of some bytes keeps the buffer of
//! all datagrams that came with it, and large ones were moved no faster without the copy.

use bytes::Bytes;
use tranship_proto::bulk::{RECORD_HEADER_LEN, RecordHeader};
use tranship_proto::error::WireError;

/// A record as it came, its data still packed.
#[derive(Debug)]
pub(super) struct RawRecord {
    pub(super) header: RecordHeader,
    pub(super) meta: Vec<u8>,
    pub(super) wire: Vec<u8>,
}

impl RawRecord {
    /// Moves what is missing from the front of a piece. Whether all is there now.
    fn fill(&mut self, piece: &mut Bytes) -> bool {
        let parts = [(&mut self.meta, self.header.meta_len), (&mut self.wire, self.header.wire_len)];
        parts.into_iter().all(|(part, length)| {
            let missing = length as usize - part.len();
            part.extend_from_slice(&piece.split_to(missing.min(piece.len())));
            part.len() == length as usize
        })
    }
}

/// The record of which the last piece has brought a part.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    head: [u8; RECORD_HEADER_LEN],
    filled: usize,
    record: Option<RawRecord>,
}

impl Incoming {
    /// Takes a piece, and adds the records that it completes. After an error nothing more can be taken.
    pub(super) fn take(&mut self, mut piece: Bytes, whole: &mut Vec<RawRecord>) -> Result<(), WireError> {
        while !piece.is_empty() {
            let mut record = match self.record.take() {
                Some(record) => record,
                None => {
                    let part = piece.split_to((RECORD_HEADER_LEN - self.filled).min(piece.len()));
                    self.head[self.filled..self.filled + part.len()].copy_from_slice(&part);
                    self.filled += part.len();
                    if self.filled < RECORD_HEADER_LEN {
                        return Ok(());
                    }
                    self.filled = 0;
                    let header = RecordHeader::parse(&self.head)?;
                    let room = |length: u32| Vec::with_capacity(length as usize);
                    RawRecord { header, meta: room(header.meta_len), wire: room(header.wire_len) }
                }
            };
            match record.fill(&mut piece) {
                true => whole.push(record),
                false => self.record = Some(record),
            }
        }
        Ok(())
    }

    /// Whether no record has begun that is not complete.
    pub(super) fn is_between(&self) -> bool {
        self.filled == 0 && self.record.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::bulk::RecordKind;

    fn stream(records: &[(usize, usize)]) -> Vec<u8> {
        let mut all = Vec::new();
        for (n, (meta, data)) in records.iter().enumerate() {
            let (meta_len, wire_len) = (*meta as u32, *data as u32);
            let header =
                RecordHeader { kind: RecordKind::Tree, zstd: false, meta_len, raw_len: wire_len, wire_len };
            all.extend(header.to_bytes());
            all.extend(std::iter::repeat_n(n as u8, *meta));
            all.extend(std::iter::repeat_n(!(n as u8), *data));
        }
        all
    }

    #[test]
    fn pieces_of_any_length_make_the_same_records() {
        let records = [(0, 0), (5, 0), (0, 7), (300, 70_000), (1, 1), (0, 0)];
        let all = Bytes::from(stream(&records));
        for length in [1, 2, 15, 16, 17, 1000, all.len()] {
            let (mut incoming, mut whole) = (Incoming::default(), Vec::new());
            let mut rest = all.clone();
            while !rest.is_empty() {
                incoming.take(rest.split_to(length.min(rest.len())), &mut whole).unwrap();
            }
            assert!(incoming.is_between(), "{length}");
            let got: Vec<_> = whole.iter().map(|r| (r.meta.len(), r.wire.len())).collect();
            assert_eq!(got, records, "{length}");
            for (n, r) in whole.iter().enumerate() {
                assert!(r.meta.iter().all(|b| *b == n as u8) && r.wire.iter().all(|b| *b == !(n as u8)));
            }
        }
    }

    #[test]
    fn a_part_of_a_record_is_not_between() {
        let all = Bytes::from(stream(&[(3, 3)]));
        for length in [1, 16, 17, 21] {
            let (mut incoming, mut whole) = (Incoming::default(), Vec::new());
            incoming.take(all.slice(..length), &mut whole).unwrap();
            assert!(!incoming.is_between() && whole.is_empty(), "{length}");
        }
    }

    #[test]
    fn a_bad_header_is_refused_before_there_is_room_for_it() {
        let mut all = stream(&[(1, 1)]);
        all[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let (mut incoming, mut whole) = (Incoming::default(), Vec::new());
        assert!(incoming.take(all.into(), &mut whole).is_err());
        assert!(whole.is_empty());
    }
}
