//! The protocol with the bytes of blobs in an object store, a server of the protocol of S3 in this process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "protocol.rs"]
mod protocol;

#[path = "protocol/objects.rs"]
mod objects;
