//! Images: from a registry to the root file system of an instance.
//!
//! ```text
//! client --Source--> pull --bytes--> unpack (tar) --data, index--> store --erofs--> mount
//! pack --> push
//! ```
//!
//! A [`store::ImageStore`] holds what a node has; [`store::ImageStore::pull`] brings an image from any
//! [`source::Source`] into it, and [`Image::mount`] mounts it under a writable
//! directory. The other way, `pack` makes an image of a program and `push` gives it to a registry.
//!
//! A layer is one file with the contents of its files (`data`) and a tree of the rest (`index`); an
//! image is a small EROFS file system (`erofs`), merged of such trees, that points into the data.
//! A registry cuts large layers anew ([`converted`]), so that nodes fetch and check them piece by piece.
//! Where the kernel mounts none ([`mount::KernelPath`]), the same reader of archives fills
//! directories for overlayfs, and instances see the same tree.
//!
//! Whoever pushes an image chooses its every byte: [`limits`] bounds what it may ask for, `tar`
//! refuses what two programs could read differently, `unpack` lets nothing out of a layer's
//! directory. Nothing gets a name before its digests matched and its bytes are on the disk.
//!
//! The crate does not know what runs from an image: the caller says what to keep.
//!
//! Test: `cargo nextest run -p longshore-image`, as root, with GNU tar and Python.

mod attributes;
pub mod client;
pub mod compression;
pub mod config;
pub mod converted;
mod erofs;
mod index;
pub mod limits;
pub mod manifest;
pub mod mount;
pub mod pack;
pub mod pull;
pub mod push;
pub mod rates;
pub mod source;
mod steps;
pub mod store;
pub mod tar;
pub mod unpack;
mod wire;

pub use config::ImageConfig;
pub use limits::Limits;
pub use pull::{PullEvent, PullImageError, PullReport};
pub use source::{Retry, Source};
pub use store::{Image, ImageStore};
pub use wire::LookalikeKey;
