//! Memory at the source: read while the container runs, sent in rounds.
//!
//! The first round carries all private memory of the container's processes, each later one what has
//! changed since, the last, after the freeze, the rest. Nothing here stops the container, and a process
//! or a mapping that appears, changes or goes between two looks is no error: what is missing at the
//! end is found by comparing with what CRIU and the kernel say that there has to be ([`Rounds::missing`]).

mod book;
mod digest;
#[cfg(target_arch = "x86_64")]
mod inject;
mod left;
mod read;
mod round;
mod scan;
mod track;
mod watch;

pub use book::Full;
pub use left::{LeftOut, Populated, add_to_images};
pub use round::{PageSink, Plan, RoundError, Rounds, lane};
pub use scan::kernel_scans;
pub use watch::{SOCKET as WATCH_SOCKET, pair as watch_pair, receive as watch_receive, watch_main};
