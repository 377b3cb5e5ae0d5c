//! To be written.
pub mod source;
