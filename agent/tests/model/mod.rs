//! The world that the two machines are explored in.

pub mod ending;
pub mod explore;
pub mod machines;
pub mod moves;
pub mod walk;
pub mod words;
pub mod world;
