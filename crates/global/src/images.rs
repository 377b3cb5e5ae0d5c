//! From the image that a user named to the digest that a release pins.

use http::Method;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client};
use longshore_types::{Digest, ImageReference};

use crate::hash::sha256;

/// Asks the registry.
pub struct ImageResolver {
    registry: Registry,
    public_name: String,
}

enum Registry {
    Asked(Box<Client>),
    /// That of a simulation: it has every image, under a digest that follows from its name.
    Simulated,
}

impl ImageResolver {
    /// A resolver that asks `registry`, which users call `public_name`.
    pub fn new(registry: Client, public_name: String) -> Self {
        Self { registry: Registry::Asked(Box::new(registry)), public_name }
    }

    /// A resolver that asks nobody.
    pub fn simulated() -> Self {
        Self { registry: Registry::Simulated, public_name: String::new() }
    }

    /// The digest that the reference has now.
    pub async fn resolve(&self, image: &ImageReference) -> Result<Digest, Problem> {
        if let Some(host) = image.registry.as_ref().filter(|host| **host != self.public_name) {
            let problem = self.refuse(
                image,
                format!(
                    "an image of this platform's registry; push it there first, without {host}: \
                     docker tag, then docker push {}/{}",
                    self.public_name, image.repository
                ),
            );
            return Err(problem);
        }
        let registry = match &self.registry {
            Registry::Asked(registry) => registry,
            Registry::Simulated => {
                let digest = format!("sha256:{}", sha256(image.to_string()));
                return Ok(digest.parse().expect("a hash is a digest"));
            }
        };
        let path = format!("/v2/{}/manifests/{}", image.repository, image.wanted());
        let answer = match registry.send(Method::HEAD, &path, None::<&()>).await {
            Ok(answer) => answer,
            Err(CallError::Status { status: 404, .. }) => {
                let mut problem = self.refuse(
                    image,
                    format!(
                        "an image in the registry; push it with docker push {}/{image}",
                        self.public_name
                    ),
                );
                problem.code = ProblemCode::ImageNotFound;
                return Err(problem);
            }
            Err(error) => {
                tracing::warn!(%error, %image, "cannot ask the registry for an image");
                let detail = format!("the registry cannot be asked for {image}: {error}");
                return Err(Problem::new(ProblemCode::Unavailable, detail));
            }
        };
        let digest = answer.headers().get("docker-content-digest");
        digest.and_then(|text| text.to_str().ok()?.parse().ok()).ok_or_else(|| {
            tracing::error!(%image, "the registry named no digest");
            Problem::new(ProblemCode::Internal, format!("the registry named no digest for {image}"))
        })
    }

    fn refuse(&self, image: &ImageReference, allowed: String) -> Problem {
        Problem::invalid_value("image", format_args!("{:?}", image.to_string()), allowed)
    }
}
