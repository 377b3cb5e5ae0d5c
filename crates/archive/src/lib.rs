//! Trees of files as tar archives: read strictly, written from a directory, and unpacked into one.
//!
//! - [`tar`]: an archive as a sequence of entries, knowing nothing of where they will be put.
//! - [`Source`]: a tree, which becomes an archive. [`unpack`]: an archive, which becomes a tree, by the
//!   habits of `cp`.
//!
//! Both ends of an archive may be strangers. A reader refuses what two programs could read differently, a
//! tree is walked from open directory to name, and what [`Reach`] does not allow is not written. Layers of
//! images have rules of their own and are unpacked by `longshore-image`.
//! Test: `cargo nextest run -p longshore-archive`, and the tests of `longshore-image`, which feed the
//! reader byte by byte.

#![deny(missing_docs)]

mod limits;
mod pack;
pub mod tar;
mod unpack;

pub use limits::{LimitExceeded, TarLimits};
pub use pack::{LeftOut, PackError, Source, Specials};
pub use unpack::{Owner, Place, Reach, Rules, UnpackError, unpack};
