//! The credentials for an object store, from a file as other clients of S3 have it. They are never on a
//! command line, which everybody on the machine can read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3Builder;

/// Far more than such a file has.
const MAX_FILE: u64 = 64 << 10;
/// What makes a file one that others than its owner can read or change.
const OTHERS: u32 = 0o077;

/// Who we are to an object store.
#[derive(Clone)]
pub struct S3Credentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Credentials({})", self.access_key_id)
    }
}

/// Why a file of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadS3CredentialsError {
    /// It cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Others than its owner can read or change it.
    #[error("{} has the mode {mode:o}; credentials must be in a file for its owner alone, such as 600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something in it is not there, or not as it should be.
    #[error("{} has no {key} in [default]", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        key: &'static str,
    },
}

impl S3Credentials {
    /// With these, and without a token of a session.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        let (access_key_id, secret_access_key) = (access_key_id.into(), secret_access_key.into());
        Self { access_key_id, secret_access_key, session_token: None }
    }

    /// Reads a file like `~/.aws/credentials`: what is in its part `[default]`, or before any part.
    pub fn read(path: &Path) -> Result<Self, ReadS3CredentialsError> {
        let failed = |source| ReadS3CredentialsError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & OTHERS != 0 {
            return Err(ReadS3CredentialsError::Open { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text)
            .map_err(|key| ReadS3CredentialsError::Missing { path: path.to_owned(), key })
    }

    /// What the text says, or what it lacks.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let find = |wanted: &'static str| {
            let mut is_default = true;
            for line in text.lines().map(str::trim) {
                if let Some(part) = line.strip_prefix('[') {
                    is_default = part.trim_end_matches(']').trim() == "default";
                    continue;
                }
                let found = line.split_once('=').filter(|(key, _)| key.trim() == wanted);
                let value = found.map(|(_, value)| value.trim().to_owned());
                if let Some(value) = value.filter(|value| is_default && !value.is_empty()) {
                    return Ok(value);
                }
            }
            Err(wanted)
        };
        Ok(Self {
            access_key_id: find("aws_access_key_id")?,
            secret_access_key: find("aws_secret_access_key")?,
            session_token: find("aws_session_token").ok(),
        })
    }

    pub(super) fn give(&self, builder: AmazonS3Builder) -> AmazonS3Builder {
        let Self { access_key_id, secret_access_key, session_token } = self;
        let builder =
            builder.with_access_key_id(access_key_id).with_secret_access_key(secret_access_key);
        session_token.iter().fold(builder, AmazonS3Builder::with_token)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: &str = "# ours\n[other]\naws_access_key_id = no\naws_secret_access_key = no\n\
        [default]\naws_access_key_id = AKIA1\naws_secret_access_key=a/b+c=\n";

    #[test]
    fn the_default_part_of_a_file_is_read() {
        let credentials = S3Credentials::parse(FILE).unwrap();
        assert_eq!(credentials.access_key_id, "AKIA1");
        assert_eq!(credentials.secret_access_key, "a/b+c=");
        assert_eq!(credentials.session_token, None);
        let without = "aws_access_key_id=a\naws_secret_access_key = b\naws_session_token = c";
        let credentials = S3Credentials::parse(without).unwrap();
        assert_eq!(credentials.session_token.as_deref(), Some("c"));
        let shown = format!("{credentials:?}");
        assert_eq!(shown, "S3Credentials(a)", "no secret is written anywhere");
        for (text, lacks) in [
            ("", "aws_access_key_id"),
            ("[default]\naws_access_key_id =\n", "aws_access_key_id"),
            ("aws_access_key_id = a\n[x]\naws_secret_access_key = b", "aws_secret_access_key"),
        ] {
            assert_eq!(S3Credentials::parse(text).unwrap_err(), lacks, "{text}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let refused = |path: &Path| S3Credentials::read(path).unwrap_err().to_string();
        assert!(refused(&path).contains("cannot read"), "{}", refused(&path));
        std::fs::write(&path, FILE).unwrap();
        for (mode, is_taken) in [(0o644, false), (0o640, false), (0o600, true), (0o400, true)] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match is_taken {
                true => drop(S3Credentials::read(&path).unwrap()),
                false => assert!(refused(&path).contains("for its owner alone"), "{mode:o}"),
            }
        }
        std::fs::write(&path, "[default]\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(refused(&path).contains("has no aws_access_key_id in [default]"));
    }
}
