//! The destination side of a migration.

pub mod machine;
