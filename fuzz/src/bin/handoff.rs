//! Messages of the hand-over, with the documents inside an offer.
//! Input: the number of a message in one byte, its body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::handoff::Handoff;
use tranship_proto::network::NetCapture;
use tranship_proto::registry::Message;

fuzz_target!(|input: &[u8]| {
    if let Some(Message::Handoff(envelope)) = tranship_fuzz::message(input)
        && let Handoff::Reserve(offer) = envelope.body
        && let Ok(capture) = serde_json::from_slice::<NetCapture>(&offer.network_json)
    {
        let _ = capture.check();
    }
    // Reached sooner without the offer around it.
    if let Ok(capture) = serde_json::from_slice::<NetCapture>(input) {
        let _ = capture.check();
    }
});
