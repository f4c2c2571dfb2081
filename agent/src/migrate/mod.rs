//! Migrations: two pure state machines, and drivers that do what they say.

pub mod destination;
pub mod source;
