//! Bulk streams between two endpoints: losses, caps, peers that do nothing or lie.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

mod hostile;
mod limits;
mod loss;
mod pair;
mod wire;
