//! Hosts on one machine for tests, demos and whoever wants to try something.
//!
//! A [`Lab`] is a set of hosts made out of namespaces, each with its own root file system,
//! processes, network and cgroup view, with real runc, CRIU and conmon, joined by real bridges,
//! plus a client namespace on the same segments. `tranship-lab up` and [`Lab::up`] make the same
//! thing; a test attaches to a lab that is there or makes one:
//!
//! ```no_run
//! # fn main() -> Result<(), tranship_lab::LabError> {
//! let lab = tranship_lab::Lab::attach_or_up("tests", 2)?;
//! let version = lab.host("host-a").run(["criu", "--version"])?.ok()?;
//! lab.client_run(["ping", "-c", "1", "10.77.0.1"])?.ok()?;
//! lab.cut("host-a", "host-b")?;
//! lab.heal_all()?;
//! lab.down()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything works on the kernel's objects by name (see [`names`]), so a lab can be used and
//! removed by another process than the one that made it.

pub mod agent_config;
pub mod agent_log;
pub mod ask;
pub mod audit;
pub mod bench;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod demo;
pub mod error;
pub mod fault;
pub mod faults;
pub mod host;
pub mod host_init;
pub mod image;
pub mod lab;
pub mod names;
pub mod peer;
pub mod pki;
pub mod progress;
pub mod rlimits;
pub mod run;
pub mod scenario;
pub mod state;
pub mod sys;
pub mod teardown;
pub mod topology;
pub mod workload;

pub use audit::{AuditOptions, Finding, Kind};
pub use error::LabError;
pub use host::Host;
pub use lab::{Lab, LabOptions};
pub use names::{LabName, Network};
pub use run::{LabCommand, Output};
