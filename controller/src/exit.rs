//! Exit codes: stable, documented in `--help` and the manual pages from this file.

use tranship_proto::status::Reason;

/// Done.
pub const DONE: u8 = 0;
/// Failed; a container that was to be moved still runs at its source, unless it has ended by itself.
pub const FAILED: u8 = 1;
/// The command line or the request does not make sense: nothing was touched.
pub const USAGE: u8 = 2;
/// One part of several failed, for example one host of all that were asked.
pub const PARTIAL: u8 = 3;
/// Committed, and the destination has not confirmed.
pub const IN_DOUBT: u8 = 4;
/// An agent does not answer, or the connection to it was lost for good.
pub const UNREACHABLE: u8 = 5;
/// Refused by the destination, or the container cannot be migrated: nothing was touched.
pub const REFUSED: u8 = 6;
/// Cancelled on request; the container runs at its source.
pub const CANCELLED: u8 = 7;
/// Too late to cancel.
pub const TOO_LATE: u8 = 8;
/// A certificate or its role is not accepted, or no protocol version is shared.
pub const NOT_AUTHORIZED: u8 = 9;
/// Interrupted twice: this command left, the migration goes on.
pub const DETACHED: u8 = 130;
/// A bug, or an answer that makes no sense.
pub const INTERNAL: u8 = 255;

/// Every code with what it says, in the order of the manual.
pub const TABLE: &[(u8, &str)] = &[
    (DONE, "done"),
    (
        FAILED,
        "failed; a container that was to be moved still runs at its source, unless it has ended by itself",
    ),
    (USAGE, "the request makes no sense: unknown container or host, same host, bad option"),
    (PARTIAL, "a part of several failed"),
    (IN_DOUBT, "in doubt: committed, and the destination has not confirmed yet"),
    (UNREACHABLE, "an agent does not answer, or the connection to it was lost"),
    (REFUSED, "refused by the destination, or the container cannot be migrated; nothing was touched"),
    (CANCELLED, "cancelled; the container runs at its source"),
    (TOO_LATE, "too late to cancel: already committed"),
    (NOT_AUTHORIZED, "certificate or role not accepted, or no protocol version in common"),
    (DETACHED, "interrupted twice; the migration goes on without this command"),
    (INTERNAL, "internal error"),
];

/// The code for a reason.
pub fn code_of(reason: Reason) -> u8 {
    match reason {
        Reason::BadRequest | Reason::UnknownContainer | Reason::UnknownHost | Reason::UnknownMigration => {
            USAGE
        }
        Reason::Unreachable => UNREACHABLE,
        Reason::NotAuthorized | Reason::Version => NOT_AUTHORIZED,
        Reason::Busy | Reason::Refused | Reason::NotMigratable => REFUSED,
        Reason::Cancelled => CANCELLED,
        Reason::TooLate => TOO_LATE,
        Reason::Failed | Reason::Timeout | Reason::Ended => FAILED,
        Reason::InDoubt => IN_DOUBT,
        Reason::Internal => INTERNAL,
    }
}

/// The table as the end of `--help`.
pub fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in TABLE {
        text.push_str(&format!("  {code:>3}  {meaning}\n"));
    }
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let expected = [
            (Reason::BadRequest, 2),
            (Reason::UnknownContainer, 2),
            (Reason::UnknownHost, 2),
            (Reason::UnknownMigration, 2),
            (Reason::Unreachable, 5),
            (Reason::NotAuthorized, 9),
            (Reason::Version, 9),
            (Reason::Busy, 6),
            (Reason::Refused, 6),
            (Reason::NotMigratable, 6),
            (Reason::Cancelled, 7),
            (Reason::TooLate, 8),
            (Reason::Failed, 1),
            (Reason::Timeout, 1),
            (Reason::InDoubt, 4),
            (Reason::Internal, 255),
            (Reason::Ended, 1),
        ];
        for (reason, code) in expected {
            assert_eq!(code_of(reason), code, "{reason:?}");
            assert!(TABLE.iter().any(|(c, _)| *c == code), "{code} is not documented");
        }
    }

    #[test]
    fn the_table_names_each_code_once_and_in_order() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(help().lines().count() == TABLE.len() + 1);
    }
}
