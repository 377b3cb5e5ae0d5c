//! To be written.
mod attributes;
pub mod compression;
pub mod config;
pub mod limits;
pub mod manifest;
pub mod mount;
pub mod pull;
pub mod source;
pub mod store;
pub mod tar;
pub mod unpack;
