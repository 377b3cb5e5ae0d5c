//! Files of an instance as an archive.

use serde::{Deserialize, Serialize};

/// The media type of an archive.
pub const TAR: &str = "application/x-tar";

/// Which files of an instance are read or written. As a query it goes through all roles unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRequest {
    /// The path inside, from `/`. Read: what is there, under its name, or with `/.` at the end its
    /// contents. Written: a directory, into which the archive is unpacked.
    pub path: String,
    /// Written only: the path is the destination of `cp`, and the archive holds one tree.
    #[serde(default)]
    pub cp: bool,
    /// Written only: files belong to whom the archive says, by number; otherwise to root inside.
    #[serde(default)]
    pub owners: bool,
}

impl ArchiveRequest {
    /// The request as a query.
    pub fn to_query(&self) -> String {
        let Self { path, cp, owners } = self;
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("path", path);
        for (name, value) in [("cp", cp), ("owners", owners)] {
            if *value {
                query.append_pair(name, "true");
            }
        }
        query.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_holds_any_path() {
        let request =
            ArchiveRequest { path: "/a&b=c d/\u{e9}".to_owned(), cp: true, owners: false };
        assert_eq!(request.to_query(), "path=%2Fa%26b%3Dc+d%2F%C3%A9&cp=true");
    }
}
