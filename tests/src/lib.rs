//! Drives the release binary from outside, as a user, a registry client and an unlucky machine do.
//!
//! Nothing here links the product: it starts `longshore up`, speaks to what it publishes and looks
//! at the kernel for what it leaves behind. The benchmarks of `cargo xtask bench` use the same
//! harness, so that what is measured is what is tested.
//!
//! - [`Platform`]: one `longshore up` in a directory of its own, gone without a trace at the end.
//! - [`Traffic`]: requests that go on while something else happens.
//! - [`image`]: test images, made here; nothing is pulled from a public registry. [`programs`]: such
//!   of real programs.
//! - [`Browser`]: a headless Chromium, for the dashboard.
//! - [`certificates`]: such for users, by openssl.
//! - [`s3`]: an object store, for images.
//! - [`Machine`]: another one, behind a link, that joins.
//! - [`World`]: one `longshore world`, many locations on this machine.
//! - [`Dockerd`]: a docker daemon with its own state, for Debian's docker client.
//!
//! Tests: `cargo nextest run -p longshore-e2e`, after `cargo build --release`. They need root.

pub mod browser;
pub mod certificates;
pub mod cli;
pub mod debian;
pub mod dockerd;
pub mod http;
pub mod image;
pub mod leaks;
pub mod machine;
pub mod platform;
pub mod process;
pub mod programs;
pub mod pty;
pub mod s3;
pub mod skip;
pub mod small_disk;
pub mod traffic;
pub mod wait;
pub mod websocket;
pub mod world;

pub use browser::Browser;
pub use cli::Finished;
pub use dockerd::Dockerd;
pub use machine::Machine;
pub use platform::{Platform, UpOptions};
pub use traffic::Traffic;
pub use wait::{eventually, eventually_within, holds};
pub use websocket::WebSocket;
pub use world::World;
