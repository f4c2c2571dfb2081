//! Memory images on their way: CRIU's page stream at the source, the image store at the
//! destination.
//!
//! In plain mode CRIU hands pages to the agent's page server while it dumps, so that they cross
//! the network as they are produced and never touch a disk or a second copy in memory at the
//! source. The remaining images are small; they follow when the dump has ended. What the
//! container's files look like on disk is not known here.

pub mod early;
pub mod fill;
pub mod map;
pub mod page_server;
pub mod pagemap;
pub mod receive;
pub mod send;
pub mod source;
pub mod store;
pub mod table;

/// Directory permissions of everything made here: images hold all of a container's secrets.
pub const DIR_MODE: u32 = 0o700;
