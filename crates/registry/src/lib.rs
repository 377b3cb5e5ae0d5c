//! The registry: OCI distribution 1.1 over a directory, so that docker, podman, buildah and skopeo
//! push and pull unchanged. Bytes are kept as they came, whatever their compression.
//!
//! [`Registry::open`] takes a directory; [`router`] serves it. Who listens, and with which TLS, is
//! decided by whoever wires the role. Who may do what is asked of an [`Authorizer`].
//!
//! The crate knows nothing of apps, nodes or images that run. What later work adds has its place:
//! scoped tokens in `access`, referrers beside `listings`, garbage collection beside
//! `storage::links` (whose locks it needs), another blob store behind `storage`.
//! Test: `cargo nextest run -p longshore-registry`; `tests/clients.rs` needs docker.io, podman and
//! skopeo.

#![deny(missing_docs)]

mod access;
mod blobs;
mod listings;
mod manifest;
mod manifests;
mod range;
mod refusal;
mod registry;
mod route;
mod server;
mod storage;
mod uploads;

pub use access::{Authorizer, TokenTable};
pub use registry::{OpenRegistryError, Registry, RegistryOptions};
pub use server::router;
pub use storage::StorageError;
