//! Messages between a controller and an agent, greetings, and the frame around all of them.
//! Input: the number of a message in one byte, its body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::control::Request;
use tranship_proto::frame::Header;
use tranship_proto::registry::{Message, limit_of};
use tranship_proto::version;

fuzz_target!(|input: &[u8]| {
    if let Some(header) = input.first_chunk()
        && let Ok(header) = Header::parse(header, version::GREETING, limit_of)
    {
        assert!(limit_of(header.kind).is_some_and(|limit| header.length as usize <= limit));
    }
    match tranship_fuzz::message(input) {
        Some(Message::Hello(hello)) => {
            let _ = version::choose(&hello.versions);
        }
        Some(Message::Request(Request::Run(run))) => {
            let _ = run.check();
        }
        Some(Message::Request(Request::Migrate(migrate))) => {
            let _ = migrate.options.check();
        }
        _ => {}
    }
});
