//! References to images: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, ParseError, Repository, text_type};

/// A tag of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tag {
    fn default() -> Self {
        Self("latest".to_owned())
    }
}

impl FromStr for Tag {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = (1..=128).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new(
                "tag",
                text,
                "1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'",
            ))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(Tag);

/// Docker's own registry, as it stands in the names of images.
const DOCKER_HUB: &str = "docker.io";

/// A reference to an image as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// `host[:port]`, when the first part looks like one (has a dot, a colon, or is `localhost`).
    pub registry: Option<String>,
    /// The repository within the registry.
    pub repository: Repository,
    /// The tag, when one was written.
    pub tag: Option<Tag>,
    /// The digest of a manifest, when one was written; it wins over the tag.
    pub digest: Option<Digest>,
}

impl ImageReference {
    /// What a registry is asked for: the digest, else the tag, else `latest`.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => Tag::default().to_string(),
        }
    }

    /// The repository as the registry that is named has it: what has one part in the name of an image of
    /// Docker's own registry lies in `library` there.
    pub fn repository_there(&self) -> Repository {
        let is_short =
            self.registry.as_deref() == Some(DOCKER_HUB) && !self.repository.as_str().contains('/');
        let full = is_short.then(|| format!("library/{}", self.repository).parse().ok());
        // One that becomes too long is in no registry.
        full.flatten().unwrap_or_else(|| self.repository.clone())
    }
}

impl FromStr for ImageReference {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("image", text, "repository[:tag][@sha256:...]");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| refuse())?)),
            None => (text, None),
        };
        let looks_like_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => (Some(first.to_owned()), rest),
            _ => (None, rest),
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse().map_err(|_| refuse())?)),
            None => (rest, None),
        };
        let repository = repository.parse().map_err(|_| refuse())?;
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

text_type!(ImageReference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_users_write() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for text in [
            "web".to_owned(),
            "default/web:1".to_owned(),
            "127.0.0.1:4601/default/web:1".to_owned(),
            format!("default/web@{digest}"),
            format!("localhost/default/web:v1@{digest}"),
        ] {
            assert_eq!(text.parse::<ImageReference>().unwrap().to_string(), text);
        }
        let reference: ImageReference = "127.0.0.1:4601/default/web".parse().unwrap();
        assert_eq!(reference.registry.as_deref(), Some("127.0.0.1:4601"));
        assert_eq!(reference.wanted(), "latest");
        for bad in ["", "Web", "a:b:c", "a@sha256:1", "a:", "a/../b"] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
        for (text, there) in [
            ("docker.io/nginx:1.27", "library/nginx"),
            ("docker.io/library/nginx", "library/nginx"),
            ("docker.io/team/app", "team/app"),
            ("ghcr.io/app", "app"),
            ("app", "app"),
        ] {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!(reference.repository_there().as_str(), there, "{text}");
        }
    }
}
