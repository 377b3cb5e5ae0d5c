//! The pure deciders: a snapshot, a clock value and a seed in; a plan with reasons out.
//!
//! - [`collection`]: which images leave the disk of a node.
//! - [`global`]: which locations run how many instances of an app.
//! - [`gpus`]: which GPUs of a node an instance gets.
//! - [`location`]: which node runs an instance, and which instance of an old release goes next.
//! - [`replay`]: what planners were given and what they made of it, as it is logged.
//! - [`restart`]: when an instance that ended is started again.
//! - [`waves`]: in which order a new release comes to the locations.
//! - [`rollout`]: whether a rollout gets anywhere, and what becomes of one that does not.
//!
//! No I/O, no clock, no randomness but the seed, no iteration in hash order: the same input gives
//! the same plan anywhere, so decisions can be replayed, simulated and tested by property.
//! Test: `cargo nextest run -p longshore-planning`.

#![deny(missing_docs)]

pub mod collection;
pub mod global;
pub mod gpus;
pub mod location;
mod pinned;
pub mod replay;
pub mod restart;
pub mod rollout;
mod seeded;
pub mod waves;

pub use pinned::Pinned;
