//! The tranship agent: one per host. See ARCHITECTURE.md for the map of modules.
