//! QUIC between agents and with controllers: endpoint, identity, framed messages, bulk streams.
//!
//! What the bytes mean is not known here. TLS 1.3 both ways; a peer is who its certificate's URI
//! name says ([`identity::Role`]), and being signed by the fleet's authority authorises nothing
//! by itself: every request checks the role.

pub mod bulk;
pub mod endpoint;
pub mod framing;
pub mod identity;
mod incoming;
pub mod meter;
mod squeeze;

pub use endpoint::{Endpoint, TransportError};
pub use identity::{Identity, Role};
