//! What the services say to each other and to users: the types on which they meet.
//!
//! No service imports another; each imports this crate and `longshore-link`, which carries these
//! types over HTTP. Everything here is plain data: no I/O, no decisions.
//!
//! - [`v1`]: the public REST API under `/v1`.
//! - [`links`]: the internal links between roles: what flows down (allotments, assignments, routes,
//!   token tables) and what flows up (reports, acknowledgements).
//! - [`problem`]: errors as RFC 9457 problem documents with stable codes.
//!
//! Wire types derive serde and hold validated types of `longshore-types`, so a message that was
//! read is valid. Unknown fields are ignored on purpose: a newer peer may send more.

#![deny(missing_docs)]

pub mod links;
pub mod problem;
pub mod v1;

pub use problem::{Problem, ProblemCode};
