//! The tranship agent: one per host. `ARCHITECTURE.md` has the map of modules and what each must
//! not know.

pub mod command;
pub mod config;
pub mod context;
pub mod criu;
pub mod daemon;
pub mod engine;
pub mod faults;
pub mod hook;
pub mod journal;
pub mod memory;
pub mod migrate;
pub mod network;
pub mod runtime;
pub mod server;
pub mod storage;
pub mod transport;
pub mod wire_rate;

/// Name and version, as told to peers.
pub const SOFTWARE: &str = concat!("transhipd ", env!("CARGO_PKG_VERSION"));

/// An error with its causes in one line, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = e.source();
    }
    text
}
