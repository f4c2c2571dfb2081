//! The wire vocabulary of tranship: messages, frames and limits.
//!
//! No I/O, no clock, no files and no async runtime live here, so that every byte that crosses a
//! trust boundary can be tested and fuzzed without a host. Three sorts of traffic share it:
//!
//! * [`control`]: a controller (the `tranship` command) and an agent;
//! * [`handoff`]: the source agent and the destination agent of one migration;
//! * [`bulk`]: the contents of images and files, on streams of their own.
//!
//! Messages are framed by [`frame`], numbered in [`registry`] and serialized by [`codec`], the
//! only module that knows the serializer.
#![forbid(unsafe_code)]

mod bounded;
pub mod bulk;
pub mod codec;
pub mod control;
pub mod error;
pub mod frame;
pub mod handoff;
pub mod ids;
pub mod network;
pub mod pages;
pub mod registry;
pub mod status;
pub mod tree;
pub mod version;
