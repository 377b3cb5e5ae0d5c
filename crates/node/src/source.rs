//! Images from the location, for a node that does not reach the registry.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use longshore_api::ProblemCode;
use longshore_image::source::{
    FetchedManifest, Given, Neighbours, Part, Retry, Source, SourceError,
};
use longshore_link::{CallError, Client};
use longshore_types::{Digest, NodeName, Repository};

use crate::neighbours::Near;

/// The largest manifest that is read, as in the registry.
const MAX_MANIFEST: usize = 4 << 20;

/// The images that the location gives this node.
pub struct LocationSource {
    location: Client,
    node: NodeName,
    /// Who may have parts of them; nobody on the location's own machine.
    near: Option<Near>,
}

impl LocationSource {
    /// Those of a location.
    pub fn new(location: Client, node: NodeName, near: Option<Near>) -> Self {
        Self { location, node, near }
    }

    async fn ask(
        &self,
        what: &str,
        (repository, digest): (&Repository, &Digest),
        part: Part,
    ) -> Result<http::Response<hyper::body::Incoming>, CallError> {
        let Self { location, node, .. } = self;
        let Part { from, n_bytes } = part;
        let mut path = format!(
            "/link/nodes/{node}/images/{what}?repository={repository}&digest={digest}&from={from}"
        );
        // A location of the release before sends all that follows.
        if let Some(n_bytes) = n_bytes {
            path += &format!("&n_bytes={n_bytes}");
        }
        location.send(Method::GET, &path, None::<&()>).await
    }

    async fn read_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<FetchedManifest, SourceError> {
        let answer = self.ask("manifest", (repository, digest), Part::WHOLE).await;
        let answer = answer.map_err(failed)?;
        let media_type = answer.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let media_type = media_type.to_owned();
        Ok(FetchedManifest { media_type, bytes: read_whole(answer).await? })
    }

    async fn read_converted(
        &self,
        repository: &Repository,
        manifest: &Digest,
    ) -> Result<Option<Bytes>, SourceError> {
        match self.ask("converted", (repository, manifest), Part::WHOLE).await {
            Ok(answer) => read_whole(answer).await.map(Some),
            // As a location of the release before says, too.
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn read_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        part: Part,
    ) -> Result<Given, SourceError> {
        let answer = self.ask("blob", (repository, digest), part).await.map_err(failed)?;
        // A registry may ignore the range and send all.
        let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
        let bytes = answer.into_body().into_data_stream().map_err(broken).boxed();
        Ok(if is_part { Given::Part(bytes) } else { Given::Whole(bytes) })
    }
}

impl Source for LocationSource {
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
        Box::pin(self.read_manifest(repository, digest))
    }

    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>> {
        Box::pin(self.read_blob(repository, digest, part))
    }

    fn converted<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        Box::pin(self.read_converted(repository, manifest))
    }

    fn neighbours<'a>(
        &'a self,
        repository: &'a Repository,
        image: &'a Digest,
    ) -> BoxFuture<'a, Neighbours> {
        Box::pin(async move {
            match &self.near {
                Some(near) => near.of_image(repository, image).await,
                None => Neighbours::default(),
            }
        })
    }
}

/// The bytes of a document that is no longer than a manifest may be.
async fn read_whole(answer: http::Response<hyper::body::Incoming>) -> Result<Bytes, SourceError> {
    let mut bytes = BytesMut::new();
    let mut body = answer.into_body().into_data_stream();
    while let Some(part) = body.try_next().await.map_err(broken)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > MAX_MANIFEST {
            return Err(SourceError::new("a manifest over 4 MiB", Retry::Pointless));
        }
    }
    Ok(bytes.freeze())
}

/// Whether there is no such thing, or no such way of asking for it.
pub fn is_not_found(error: &CallError) -> bool {
    match error {
        CallError::Refused(problem) => problem.code == ProblemCode::NotFound,
        CallError::Status { status, .. } => *status == StatusCode::NOT_FOUND.as_u16(),
        _ => false,
    }
}

fn failed(error: CallError) -> SourceError {
    let retry = if error.retryable() { Retry::CanHelp } else { Retry::Pointless };
    SourceError::new("the location does not give the image", retry).caused_by(error)
}

fn broken(error: hyper::Error) -> SourceError {
    SourceError::new("the connection to the location broke", Retry::CanHelp).caused_by(error)
}
