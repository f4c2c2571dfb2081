//! Migrations: two pure state machines, and drivers that do what they say.

pub mod destination;
pub mod doubt;
pub mod events;
pub mod link;
mod orders;
mod panics;
mod plan;
pub mod progress;
mod recall;
pub mod registry;
pub mod source;

pub(crate) use destination::{disk_available, memory_available};
pub(crate) use source::engine_failure;
