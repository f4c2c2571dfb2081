//! The destination side of a migration: [`machine`] decides, [`driver`] performs, [`work`] knows
//! how, `check` says no before anything is touched.

mod check;
pub mod driver;
pub mod machine;
mod memory;
mod receive;
pub mod work;

pub(crate) use check::{disk_available, memory_available};
pub(crate) use memory::take_up;
