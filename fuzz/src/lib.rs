//! What the targets share: the decoders that are not in `tranship-proto`, taken as single modules,
//! since the agent whole would bring its dependencies along; and what has to hold of a message.

#[path = "../../agent/src/memory/pagemap.rs"]
pub mod pagemap;
#[path = "../../agent/src/criu/stats.rs"]
pub mod stats;

use tranship_proto::registry::Message;
use tranship_proto::version;

/// Decodes a message out of its number and its body. What was understood has to read the same when
/// it is written again.
pub fn message(input: &[u8]) -> Option<Message> {
    let (kind, body) = input.split_first()?;
    let message = Message::decode(u16::from(*kind), body).ok()?;
    let frame = message.to_frame(version::GREETING).expect("what was decoded can be encoded");
    assert_eq!(Message::from_frame(&frame).as_ref(), Ok(&message));
    Some(message)
}
