//! The world that the two machines are explored in.

pub mod ending;
pub mod explore;
pub mod machines;
pub mod moves;
pub mod words;
pub mod world;
