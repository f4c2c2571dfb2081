//! The command against a fake agent: real sockets, real QUIC, real certificates, the real binary.

// Helpers of tests are test code too, which clippy's own exception does not see.
#![allow(clippy::unwrap_used)]

mod agent;
mod certs;
mod command;
mod commands;
mod help;
mod hostile;
mod interrupts;
mod migrating;
mod pki;
mod resolving;
mod tls;
