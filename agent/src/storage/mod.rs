//! Root file system and volumes: a tree that changes here becomes the same tree there.
//!
//! [`TreeSource`] reads a tree in passes while the container runs and sends records; [`TreeStore`] builds the
//! same tree from them. The last pass runs while the container is frozen and is exact. Both are blocking and
//! belong on threads of their own; what carries the records in between is not known here.

mod blocks;
mod contents;
mod digest;
mod entries;
mod error;
mod files;
mod objects;
mod out;
mod pass;
mod place;
mod policy;
mod remove;
mod source;
mod store;
mod suspects;
mod walk;

pub use error::StorageError;
pub use policy::{AllowedDevice, DEFAULT_DEVICES, StorePolicy};
pub use remove::remove_tree;
pub use source::{PassStats, Phase, SinkClosed, TreeEstimate, TreeLimits, TreeSink, TreeSource};
pub use store::{TreeStore, TreeTotals};
pub use suspects::{Suspects, shared_writable_files};
