//! The control plane, simulated: every process of a world on one thread, with a clock that stands still until
//! everyone waits for it, and a network that does its worst. The seed decides all of it, so that it replays a run.
//!
//! What runs is the product's own code: of `longshore-global` the lead, the mirror of the store, the scheduler with
//! rollouts, refusals and lost locations, the API with its access rights; of `longshore-location` the keeper with
//! its planner and its store. What is played is what they stand on: an etcd ([`store::Memory`], which the conformance suite
//! holds against the real ones), the network ([`net`]), the nodes ([`node`]), and the users ([`users`]). The links'
//! HTTP, the runtime and the kernel are not here; `tests/e2e/chaos.rs` has them, and finds a seed's fault once in
//! minutes where this finds hundreds.
//!
//! - [`world`]: the loop. [`links`]: who tells whom what. [`faults`]: what goes wrong. [`checks`]: what must be so.
//! - [`process`], [`role`]: what is run, killed, frozen. [`trace`]: what happened.
//!
//! Test: `cargo nextest run -p longshore-simulation`; `LONGSHORE_SEED` repeats one seed, `LONGSHORE_SEEDS` says how
//! many there are.

#![deny(missing_docs)]

pub mod checks;
pub mod faults;
pub mod links;
pub mod net;
pub mod node;
pub mod process;
pub mod role;
pub mod store;
pub mod trace;
pub mod users;
pub mod world;

pub use world::{Failure, run};
