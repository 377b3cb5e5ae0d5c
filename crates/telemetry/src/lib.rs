//! What the roles tell operators about themselves: metrics for Prometheus, traces by OTLP.
//!
//! - [`metrics`]: the registry that each role fills from its own `metrics.rs`, and how it is served.
//! - [`scrape`]: values that are read when they are asked for. [`requests`] and
//!   [`counted`]: what passes through axum routers.
//! - [`journal`]: what a role decided, in files of bounded size.
//! - [`traces`]: starts of instances, part by part.
//! - `process`: what the kernel knows of the process, as every exporter of Prometheus tells it.
//!
//! It knows nothing of what is measured. Every name is in `docs/metrics.md`, which a test of the
//! binary holds against what the roles expose.
//! Test: `cargo nextest run -p longshore-telemetry`.

#![deny(missing_docs)]

pub mod counted;
pub mod journal;
pub mod metrics;
mod process;
pub mod requests;
pub mod scrape;
pub mod traces;
