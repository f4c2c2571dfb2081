//! The words for a migration that is in doubt: why, and what would settle it.
//!
//! In one place because an operator acts on them, and the drivers of both sides have to say the
//! same. `docs/in-doubt.md` is the long form.

use tranship_proto::ids::{HostName, MigrationId};
use tranship_proto::status::{Failure, MigrationStatus, Phase, Reason, Side};

/// At the source: RELEASED is on disk and there is no connection to the destination.
pub fn unconfirmed(status: &MigrationStatus) -> Failure {
    let (s, t) = (&status.source, &status.destination);
    let text = format!(
        "{} was given to {t}, which has not said that it runs there, and {s} has no connection to {t}; \
         the copy on {s} is complete, frozen and fenced",
        status.container
    );
    Failure::new(Reason::InDoubt, Side::Source, text)
        .phase(Phase::Grant)
        .hint(settle(status, Side::Source))
        .retryable()
}

/// At the destination: PREPARED is on disk and there is no connection to the source.
pub fn unasked(status: &MigrationStatus) -> Failure {
    let (s, t) = (&status.source, &status.destination);
    let text = format!(
        "the copy of {} on {t} is complete and held, and {s}, which is to say whose the container is, \
         cannot be reached",
        status.container
    );
    Failure::new(Reason::InDoubt, Side::Destination, text)
        .phase(Phase::Prepare)
        .hint(settle(status, Side::Destination))
        .retryable()
}

/// At the destination: its own copy cannot be resumed, or has died. What settles that, unless the
/// failure says so itself.
pub fn unrunnable(status: &MigrationStatus, failure: Failure) -> Failure {
    let hint = if failure.phase == Some(Phase::Grant) {
        format!(
            "{} still has the container, frozen; to give up what is here: tranship --host {} resolve {} \
             --run-at source --destination-is-dead",
            status.source,
            status.destination,
            status.migration.short()
        )
    } else {
        format!(
            "ends by itself when {} and {} can talk: {} takes its container back",
            status.source, status.destination, status.source
        )
    };
    Failure { hint: Some(failure.hint.unwrap_or(hint)), ..failure }
}

fn settle(status: &MigrationStatus, here: Side) -> String {
    let (dead, options) = match here {
        Side::Source => (&status.destination, "--run-at source --destination-is-dead"),
        _ => (&status.source, "--run-at destination --source-is-dead"),
    };
    format!(
        "ends by itself when {} and {} can talk; only if the host {dead} is dead for good: \
         tranship resolve {} {options}",
        status.source,
        status.destination,
        status.migration.short()
    )
}

/// An operator's word is not taken while the other side can speak for itself.
pub fn answers(other: &HostName, here: Side, id: MigrationId) -> Failure {
    let text = format!("{other} answers: it is not dead, and the two agents settle this between them");
    Failure::new(Reason::Refused, here, text).hint(format!("tranship status --watch {}", id.short()))
}
