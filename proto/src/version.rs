//! Protocol versions: an offer, a choice, and a check of the choice.
//!
//! A connection starts with `Hello { versions }`; the answer names one of them. Positional
//! encodings do not tolerate added fields, so a changed message is a new protocol version. Agents
//! support the current version and the one before it, once there is one.

use crate::error::WireError;

/// Versions this build speaks, best first.
pub const SUPPORTED: &[u16] = &[1];

/// Version used to frame `Hello` and its answer, which never change their layout.
pub const GREETING: u16 = 1;

/// ALPN name of the QUIC transport. The version is agreed inside, so that a mismatch can be
/// answered with words instead of a TLS alert.
pub const ALPN: &[u8] = b"tranship";

/// The best version both sides speak.
pub fn choose(offered: &[u16]) -> Option<u16> {
    SUPPORTED.iter().copied().find(|v| offered.contains(v))
}

/// Checks the version that the other side chose out of our offer.
pub fn accept(chosen: u16) -> Result<u16, WireError> {
    if SUPPORTED.contains(&chosen) {
        Ok(chosen)
    } else {
        Err(WireError::BadVersion { got: chosen, want: SUPPORTED[0] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_shared_version_is_chosen_and_a_foreign_choice_refused() {
        assert_eq!(choose(&[99, 1, 7]), Some(1));
        assert_eq!(choose(&[99, 2]), None);
        assert_eq!(choose(&[]), None);
        assert!(accept(1).is_ok());
        assert!(accept(0).is_err());
        assert!(accept(2).is_err());
    }
}
