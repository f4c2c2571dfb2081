//! CRIU: its configuration files, logs, statistics, capabilities, and what it cannot do.
//!
//! Does not know the network nor who asks. CRIU is only ever run by the OCI runtime, except for probes.
//! Formats are described from CRIU's images/*.proto (MIT) and its documentation; no code of CRIU is used.

mod breakpoints;
mod config;
mod explain;
mod preflight;
mod preload;
mod probe;
mod stats;

pub use breakpoints::QuickBreakpoints;
pub use config::CriuConfig;
pub use explain::{Explanation, error_lines, explain, read_log};
pub use preflight::{Refusal, preflight};
pub use preload::Preload;
pub use probe::{CheckOutcome, HostCapabilities, MIN_CRIU, Programs, Version, probe};
pub use stats::{
    DumpStats, RestoreStats, StatsError, parse_dump_stats, parse_restore_stats, read_dump_stats,
    read_restore_stats,
};
