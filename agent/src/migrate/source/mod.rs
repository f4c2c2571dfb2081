//! The source side of a migration: [`machine`] decides, [`driver`] performs, [`work`] knows how.

mod copy;
pub mod driver;
mod dump;
mod forecast;
pub mod machine;
mod memory;
mod offer;
mod sink;
mod stage;
pub mod work;

pub use forecast::Forecast;
pub(crate) use offer::cpu_features;
pub(crate) use work::{bytes, engine_failure, remove_dir};
