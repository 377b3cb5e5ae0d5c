//! From a path to what it names.
//!
//! Repository names contain slashes and may contain our own words (`a/blobs/b`), so a path is read
//! from its end; a router that reads from the front cannot express that.

use axum::http::{Method, StatusCode};
use longshore_types::Repository;
use longshore_types::token::RegistryAction::{self, Delete, Pull, Push};
use percent_encoding::percent_decode_str;

use crate::access::Scopes;
use crate::refusal::{Code, Refusal};

/// What a path names. References and digests are still as the client wrote them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/token`
    Token,
    /// `/v2/_longshore/garbage`
    Garbage,
    /// `/v2/_longshore/converted/<name>`
    Converted(Repository),
    /// `/v2/_longshore/retention/<name>`
    Retention(Repository),
    /// `/v2/_longshore/kept/<name>`
    Kept(Repository),
    /// `/v2/<name>/...`
    In(Repository, Target),
}

/// What a path names within a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `tags/list`
    Tags,
    /// `manifests/<tag or digest>`
    Manifest(String),
    /// `referrers/<digest>`
    Referrers(String),
    /// `blobs/<digest>`
    Blob(String),
    /// `blobs/uploads/`
    Uploads,
    /// `blobs/uploads/<id>`
    Upload(String),
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Self, Refusal> {
        let path = percent_decode_str(path).decode_utf8().map_err(|_| no_such_endpoint())?;
        if path == "/token" {
            return Ok(Self::Token);
        }
        let rest = path.strip_prefix("/v2").ok_or_else(no_such_endpoint)?;
        let rest = match rest {
            "" | "/" => return Ok(Self::Base),
            "/_catalog" => return Ok(Self::Catalog),
            // The specification leaves names that begin so to extensions.
            "/_longshore/garbage" => return Ok(Self::Garbage),
            rest => rest.strip_prefix('/').ok_or_else(no_such_endpoint)?,
        };
        for (prefix, of) in [
            ("_longshore/retention/", Self::Retention as fn(Repository) -> Self),
            ("_longshore/converted/", Self::Converted),
            ("_longshore/kept/", Self::Kept),
        ] {
            if let Some(name) = rest.strip_prefix(prefix) {
                let name = name.parse().map_err(|error| Refusal::bad(Code::NameInvalid, error))?;
                return Ok(of(name));
            }
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let (name, target) = match parts.as_slice() {
            [name @ .., "tags", "list"] => (name, Target::Tags),
            [name @ .., "manifests", reference] => (name, Target::Manifest((*reference).into())),
            [name @ .., "referrers", digest] => (name, Target::Referrers((*digest).into())),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                (name, Target::Uploads)
            }
            [name @ .., "blobs", "uploads", id] => (name, Target::Upload((*id).into())),
            [name @ .., "blobs", digest] => (name, Target::Blob((*digest).into())),
            _ => return Err(no_such_endpoint()),
        };
        let repository =
            name.join("/").parse().map_err(|error| Refusal::bad(Code::NameInvalid, error))?;
        Ok(Self::In(repository, target))
    }

    /// The scopes that a request needs, when it makes sense and needs any.
    pub(crate) fn scopes(&self, method: &Method) -> Option<Scopes> {
        match self {
            Self::Base | Self::Token | Self::Garbage => None,
            Self::Catalog => Some(Scopes::of_catalog()),
            Self::Converted(repository) => Some(Scopes::of(repository, Pull)),
            Self::Kept(repository) => Some(Scopes::of(repository, Delete)),
            Self::Retention(repository) => {
                retention_action(method).ok().map(|action| Scopes::of(repository, action))
            }
            Self::In(repository, target) => {
                target.action(method).ok().map(|action| Scopes::of(repository, action))
            }
        }
    }
}

impl Target {
    /// The right that a request needs.
    pub(crate) fn action(&self, method: &Method) -> Result<RegistryAction, Refusal> {
        let (allowed, action) = match self {
            Self::Tags | Self::Referrers(_) => ("GET", (method == Method::GET).then_some(Pull)),
            Self::Uploads => ("POST", (method == Method::POST).then_some(Push)),
            Self::Upload(_) => (
                "GET, PATCH, PUT, DELETE",
                [Method::GET, Method::PATCH, Method::PUT, Method::DELETE]
                    .contains(method)
                    .then_some(Push),
            ),
            Self::Blob(_) => ("GET, HEAD, DELETE", stored(method)),
            Self::Manifest(_) if method == Method::PUT => ("", Some(Push)),
            Self::Manifest(_) => ("GET, HEAD, PUT, DELETE", stored(method)),
        };
        action.ok_or_else(|| Refusal::method(method, allowed))
    }
}

/// The right that it takes to ask or say what a repository keeps: who says it has things deleted.
pub(crate) fn retention_action(method: &Method) -> Result<RegistryAction, Refusal> {
    match *method {
        Method::GET => Ok(Pull),
        Method::PUT | Method::DELETE => Ok(Delete),
        _ => Err(Refusal::method(method, "GET, PUT, DELETE")),
    }
}

fn stored(method: &Method) -> Option<RegistryAction> {
    match *method {
        Method::GET | Method::HEAD => Some(Pull),
        Method::DELETE => Some(Delete),
        _ => None,
    }
}

fn no_such_endpoint() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, Code::Unsupported, "the registry has no such endpoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        use Target::*;
        let of = |name: &str, target| Some(Route::In(name.parse().unwrap(), target));
        for (path, expected) in [
            ("/v2", Some(Route::Base)),
            ("/v2/", Some(Route::Base)),
            ("/v2/_catalog", Some(Route::Catalog)),
            ("/v2/_longshore/garbage", Some(Route::Garbage)),
            ("/v2/_longshore", None),
            ("/v2/_longshore/retention/a/b", Some(Route::Retention("a/b".parse().unwrap()))),
            ("/v2/_longshore/converted/a/b", Some(Route::Converted("a/b".parse().unwrap()))),
            ("/v2/_longshore/kept/a/b", Some(Route::Kept("a/b".parse().unwrap()))),
            ("/v2/_longshore/kept", None),
            ("/v2/_longshore/converted/", None),
            ("/v2/_longshore/retention/", None),
            ("/v2/_longshore/retention/A", None),
            ("/v2/a/tags/list", of("a", Tags)),
            ("/v2/a/b/c/manifests/1", of("a/b/c", Manifest("1".into()))),
            ("/v2/a/manifests/sha256%3Aab", of("a", Manifest("sha256:ab".into()))),
            ("/v2/a/referrers/sha256:ab", of("a", Referrers("sha256:ab".into()))),
            ("/token", Some(Route::Token)),
            ("/token/", None),
            ("/v2/token", None),
            ("/v2/a/blobs/sha256:ab", of("a", Blob("sha256:ab".into()))),
            ("/v2/a/blobs/uploads", of("a", Uploads)),
            ("/v2/a/blobs/uploads/", of("a", Uploads)),
            ("/v2/a/blobs/uploads/7", of("a", Upload("7".into()))),
            ("/v2/a/blobs/b/blobs/c", of("a/blobs/b", Blob("c".into()))),
            ("/v2/a/manifests/blobs/uploads/", of("a/manifests", Uploads)),
            ("/", None),
            ("/v1/", None),
            ("/v2x", None),
            ("/v2/a", None),
            ("/v2/tags/list", None),
            ("/v2/a/../manifests/1", None),
            ("/v2/a%2f..%2fb/manifests/1", None),
            ("/v2/a//b/manifests/1", None),
            ("/v2/A/manifests/1", None),
            ("/v2/_blobs/manifests/1", None),
            ("/v2/%ff/manifests/1", None),
        ] {
            assert_eq!(Route::parse(path).ok(), expected, "{path}");
        }
    }
}
