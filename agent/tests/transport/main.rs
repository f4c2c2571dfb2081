//! Bulk streams between two endpoints: losses, caps, and peers that do nothing.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

mod limits;
mod loss;
mod pair;
mod wire;
