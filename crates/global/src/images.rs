//! From the image that a user named to the digest that a release pins.

use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Endpoint, chain};
use longshore_trust::{Fingerprint, Name, RootAuthority};
use longshore_types::{Digest, ImageReference};
use rustls::ClientConfig;

use crate::Plane;
use crate::catalog::Catalog;
use crate::hash::sha256;
use crate::registry;

/// Asks the registry.
pub struct ImageResolver {
    registry: Registry,
}

enum Registry {
    Asked {
        client: Client,
        public_name: String,
    },
    /// One that joined, wherever it says that it is.
    Joined {
        /// As whom it is called.
        config: Arc<ClientConfig>,
        /// By which it knows this control plane.
        root: Arc<RootAuthority>,
        /// What was called last, by its key and its address.
        called: Mutex<Option<((Fingerprint, String), Client)>>,
    },
    /// That of a simulation: it has every image, under a digest that follows from its name.
    Simulated,
}

impl Plane {
    /// The digest that an image has now.
    pub async fn resolve_image(&self, image: &ImageReference) -> Result<Digest, Problem> {
        self.images.resolve(image, &self.catalog()).await
    }

    /// Whether the registry answers; else why not.
    pub async fn ask_registry(&self) -> Result<(), Problem> {
        self.images.ask(&self.catalog()).await
    }
}

impl ImageResolver {
    /// A resolver that asks `registry`, which users call `public_name`.
    pub fn new(registry: Client, public_name: String) -> Self {
        Self { registry: Registry::Asked { client: registry, public_name } }
    }

    /// A resolver that asks the registry that joined, with a token of that root, by what `config` shows.
    pub fn joined(config: Arc<ClientConfig>, root: Arc<RootAuthority>) -> Self {
        Self { registry: Registry::Joined { config, root, called: Mutex::default() } }
    }

    /// A resolver that asks nobody.
    pub fn simulated() -> Self {
        Self { registry: Registry::Simulated }
    }

    /// The registry, and what users call it; none in a simulation.
    fn registry(&self, catalog: &Catalog) -> Result<Option<(Client, String)>, Problem> {
        match &self.registry {
            Registry::Asked { client, public_name } => {
                Ok(Some((client.clone(), public_name.clone())))
            }
            Registry::Joined { config, root, called } => {
                let mut called = called.lock().unwrap_or_else(PoisonError::into_inner);
                let before = called.take();
                let (key, place) = catalog.joined_registry()?;
                let known = before.filter(|(of, _)| (of.0, &of.1) == (key, &place.address));
                let (of, client) = known.unwrap_or_else(|| {
                    let endpoint = Endpoint::Tls(place.address.clone());
                    let client = Client::secured(endpoint, Arc::clone(config), Name::Registry);
                    let token = registry::token(root, Some(key), registry::CONTROL_PLANE);
                    ((key, place.address.clone()), client.with_token(token.as_str()))
                });
                *called = Some((of, client.clone()));
                Ok(Some((client, place.public.clone())))
            }
            Registry::Simulated => Ok(None),
        }
    }

    async fn ask(&self, catalog: &Catalog) -> Result<(), Problem> {
        let Some((registry, _)) = self.registry(catalog)? else { return Ok(()) };
        match registry.send(Method::GET, "/v2/", None::<&()>).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Problem::new(ProblemCode::Unavailable, chain(&error))),
        }
    }

    /// The digest that the reference has now.
    async fn resolve(&self, image: &ImageReference, catalog: &Catalog) -> Result<Digest, Problem> {
        let Some((registry, public_name)) = self.registry(catalog)? else {
            let digest = format!("sha256:{}", sha256(image.to_string()));
            return Ok(digest.parse().expect("a hash is a digest"));
        };
        if let Some(host) = image.registry.as_ref().filter(|host| **host != public_name) {
            let problem = refuse(
                image,
                format!(
                    "an image of this platform's registry; push it there first, without {host}: \
                     docker tag, then docker push {public_name}/{}",
                    image.repository
                ),
            );
            return Err(problem);
        }
        let path = format!("/v2/{}/manifests/{}", image.repository, image.wanted());
        let answer = match registry.send(Method::HEAD, &path, None::<&()>).await {
            Ok(answer) => answer,
            Err(CallError::Status { status: 404, .. }) => {
                let mut problem = refuse(
                    image,
                    format!(
                        "an image in the registry; push it with docker push {public_name}/{image}"
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
}

fn refuse(image: &ImageReference, allowed: String) -> Problem {
    Problem::invalid_value("image", format_args!("{:?}", image.to_string()), allowed)
}
