//! The source side of a migration.

pub mod machine;
