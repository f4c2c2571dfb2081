//! The dry run: the reserve step of both sides, and nothing after it.
//!
//! It does not enter the machines, the journal or the history: nothing is reserved, so there is
//! nothing to give back.

use super::source::work::{Step, Work};
use super::source::{bytes, machine::Event};
use crate::transport::framing::{read_message, write_message};
use std::time::Duration;
use tranship_proto::handoff::{Envelope, Handoff};
use tranship_proto::registry::Message;
use tranship_proto::status::{Failure, Reason, Side};

/// How long the destination may take for its checks.
const PATIENCE: Duration = Duration::from_secs(30);

/// Scans, asks the destination, and says what would be done.
pub(super) async fn plan(work: &mut Work) -> Result<Vec<String>, Failure> {
    if let Event::StepFailed(failure) = work.run(Step::Reserve).await {
        return Err(failure);
    }
    let lost = |why: String| {
        Failure::new(Reason::Unreachable, Side::Source, format!("the destination did not answer: {why}"))
    };
    let (connection, offer) = work.offer.take().ok_or_else(|| lost("no connection".into()))?;
    let (trees, memory, container) = (offer.trees.clone(), offer.memory_bytes, offer.container.clone());
    let envelope = work.envelope(Handoff::Reserve(offer));
    let version = connection.version;
    let ask = async {
        let (mut send, mut recv) = connection.quic.open_bi().await.map_err(|e| e.to_string())?;
        write_message(&mut send, version, envelope).await.map_err(|e| crate::chain(&e))?;
        read_message(&mut recv, version).await.map_err(|e| crate::chain(&e))
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await.map_err(|_| lost("no answer in time".into()))?;
    let notices = match answer.map_err(lost)? {
        Message::Handoff(Envelope { body: Handoff::Reserved { notices, .. }, .. }) => notices,
        Message::Handoff(Envelope { body: Handoff::Refused(failure), .. }) => return Err(failure),
        other => return Err(lost(format!("it sent {}", other.name()))),
    };
    let files: u64 = trees.iter().map(|t| t.bytes).sum();
    let entries: u64 = trees.iter().map(|t| t.entries).sum();
    let mut lines = vec![
        format!("reserve  {container} on {}: accepted", work.destination()),
        format!(
            "stage    {} in {entries} files of {} trees, while the container runs",
            bytes(files),
            trees.len()
        ),
        "freeze   fence the addresses, freeze the processes".to_owned(),
        format!("copy     {} of memory, and the files that changed since", bytes(memory)),
        "prepare  restore at the destination, held".to_owned(),
        "commit   give the container away".to_owned(),
        "grant    resume at the destination, announce the addresses".to_owned(),
        "retire   remove the copy here".to_owned(),
    ];
    lines.extend(notices.into_iter().map(|n| format!("notice   {n}")));
    Ok(lines)
}
