//! The registry: OCI distribution 1.1 over a directory, so that docker, podman, buildah, skopeo,
//! crane and oras push and pull unchanged. Bytes are kept as they came, whatever their compression.
//!
//! [`Registry::open`] takes a directory; [`router`] serves it. Who listens, and with which TLS, is
//! decided by whoever wires the role. Who may do what is asked of an [`Authorizer`].
//!
//! The bytes of blobs may be in an object store of the S3 protocol instead ([`Objects`]); what belongs
//! to whom is always in the directory.
//!
//! In the background it converts large layers, beside what was pushed ([`Registry::convert`]). Images of other
//! registries it gives as its own, and keeps them for as long as somebody uses them ([`UpstreamOptions`]).
//!
//! The crate knows nothing of apps, nodes or images that run. Test: `cargo nextest run -p
//! longshore-registry`; `tests/clients.rs` needs docker.io, podman, buildah and skopeo, and crane and
//! oras of a newer Debian (`cargo xtask packages`).

#![deny(missing_docs)]

mod access;
mod blobs;
mod converter;
mod garbage;
mod listings;
mod manifest;
mod manifests;
mod metrics;
mod objects;
mod pins;
mod range;
mod referrers;
mod refusal;
mod registry;
mod retention;
mod route;
mod server;
mod storage;
mod uploads;
mod upstream;

pub use access::{Authorizer, TokenTable};
pub use metrics::{Metrics, described as described_metrics, registry as metrics_registry};
pub use objects::{
    ConnectS3Error, Objects, ReadS3CredentialsError, S3Credentials, S3Endpoint, S3EndpointError,
    S3Location, S3LocationError, S3Options, S3Region, S3RegionError,
};
pub use pins::PinTable;
pub use registry::{OpenRegistryError, Pushes, Registry, RegistryOptions};
pub use server::{Scheme, router};
pub use storage::StorageError;
pub use upstream::{OpenUpstreamError, UpstreamOptions, UpstreamSource, UpstreamSourceError};
