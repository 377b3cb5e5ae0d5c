//! How the kernel of a node comes to the files of images.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of an image a node mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageMount {
    /// An EROFS file system of files as they are.
    ErofsFiles,
    /// One of loop devices that are made of the files.
    ErofsLoop,
    /// Directories of unpacked layers: it has no EROFS.
    Directories,
}

impl fmt::Display for ImageMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ErofsFiles => "EROFS in files",
            Self::ErofsLoop => "EROFS on loop devices",
            Self::Directories => "directories",
        })
    }
}
