//! The runtime's request to CRIU (CRIU's images/rpc.proto), with another log level.
//!
//! runc asks for level 4, and no configuration file of CRIU's comes after that (criu/cr-service.c,
//! `setup_logging_from_req`). The value is overwritten where it stands.

use std::ops::Range;

/// The socket that the runtime talks to CRIU's service mode over.
pub const SOCKET: i32 = 3;
/// Field 1, `type`: 1 is a dump, 2 a restore.
const REQUESTS: [[u8; 2]; 2] = [[0x08, 1], [0x08, 2]];
/// `criu_req.opts`, an embedded message.
const OPTS: u64 = 2 << 3 | 2;
/// `criu_opts.log_level`, a number.
const LOG_LEVEL: u64 = 9 << 3;

/// Lowers the log level in a request to dump or restore; leaves everything else as it is.
pub fn quieten(message: &mut [u8], level: u8) {
    if message.first_chunk().is_none_or(|head| !REQUESTS.contains(head)) {
        return;
    }
    let Some(opts) = find(message, 0..message.len(), OPTS) else { return };
    let Some(value) = find(message, opts, LOG_LEVEL) else { return };
    if let Some([byte]) = message.get_mut(value)
        && *byte > level
    {
        *byte = level;
    }
}

/// The value of the first field with this key within a message (protobuf's encoding).
fn find(message: &[u8], within: Range<usize>, wanted: u64) -> Option<Range<usize>> {
    let mut at = within.start;
    while at < within.end {
        let (key, begin) = varint(message, at)?;
        let (begin, end) = match key & 7 {
            0 => (begin, varint(message, begin)?.1),
            1 => (begin, begin + 8),
            2 => {
                let (length, begin) = varint(message, begin)?;
                (begin, begin.checked_add(usize::try_from(length).ok()?)?)
            }
            5 => (begin, begin + 4),
            _ => return None,
        };
        if end > within.end {
            return None;
        }
        if key == wanted {
            return Some(begin..end);
        }
        at = end;
    }
    None
}

/// A number and what follows it.
fn varint(message: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (i, byte) in message.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(i).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    // type 1, opts { images_dir_fd 7, log_file "x", log_level 4, root "/H" }.
    const DUMP: &[u8] = b"\x08\x01\x12\x0c\x08\x07\x52\x01x\x48\x04\x62\x02/H";

    #[test]
    fn the_level_is_lowered_and_never_raised() {
        let mut dump = DUMP.to_vec();
        dump[3] = dump.len() as u8 - 4;
        let (before, at) = (dump.clone(), 10);
        assert_eq!(dump[at], 4);
        quieten(&mut dump, 2);
        assert_eq!(dump[at], 2);
        dump[at] = 4;
        assert_eq!(dump, before, "nothing else");
        dump[at] = 1;
        quieten(&mut dump, 2);
        assert_eq!(dump[at], 1);
    }

    #[test]
    fn other_messages_and_broken_ones_stay_as_they_are() {
        let mut whole = DUMP.to_vec();
        whole[3] = whole.len() as u8 - 4;
        let mut answer = whole.clone();
        answer[1] = 6;
        let mut long = whole.clone();
        long[3] += 1;
        let mut endless = whole.clone();
        endless[4..].fill(0xff);
        for message in [answer, long, endless, whole[..10].to_vec(), b"\x08\x01".to_vec(), vec![]] {
            let mut same = message.clone();
            quieten(&mut same, 2);
            assert_eq!(same, message);
        }
    }
}
