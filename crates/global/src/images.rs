//! From the image that a user named to the digest that a release pins.

mod together;

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
use together::Together;

/// Asks the registry.
pub struct ImageResolver {
    registry: Registry,
    /// What is asked for now, of which registry and by which path.
    looks: Together<(Which, String), Result<Digest, Problem>>,
}

/// A registry as it is now: the next one that joins may have other images.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Which {
    /// What users call it.
    public_name: String,
    /// The key and the address of one that joined.
    joined: Option<(Fingerprint, String)>,
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

    /// The same image as it is named where it is pulled from, this platform's registry: what another one has lies
    /// there below that one's name.
    pub fn place_image(&self, image: &ImageReference) -> Result<ImageReference, Problem> {
        self.images.place(image, &self.catalog())
    }

    /// Whether the registry answers; else why not.
    pub async fn ask_registry(&self) -> Result<(), Problem> {
        self.images.ask(&self.catalog()).await
    }
}

impl ImageResolver {
    /// A resolver that asks `registry`, which users call `public_name`.
    pub fn new(registry: Client, public_name: String) -> Self {
        Self::of(Registry::Asked { client: registry, public_name })
    }

    /// A resolver that asks the registry that joined, with a token of that root, by what `config` shows.
    pub fn joined(config: Arc<ClientConfig>, root: Arc<RootAuthority>) -> Self {
        Self::of(Registry::Joined { config, root, called: Mutex::default() })
    }

    /// A resolver that asks nobody.
    pub fn simulated() -> Self {
        Self::of(Registry::Simulated)
    }

    fn of(registry: Registry) -> Self {
        Self { registry, looks: Together::default() }
    }

    /// The registry, and which it is; none in a simulation.
    fn registry(&self, catalog: &Catalog) -> Result<Option<(Client, Which)>, Problem> {
        match &self.registry {
            Registry::Asked { client, public_name } => {
                let which = Which { public_name: public_name.clone(), joined: None };
                Ok(Some((client.clone(), which)))
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
                *called = Some((of.clone(), client.clone()));
                let which = Which { public_name: place.public.clone(), joined: Some(of) };
                Ok(Some((client, which)))
            }
            Registry::Simulated => Ok(None),
        }
    }

    fn place(&self, image: &ImageReference, catalog: &Catalog) -> Result<ImageReference, Problem> {
        match self.registry(catalog)? {
            Some((_, which)) => place(image, &which.public_name),
            None => Ok(image.clone()),
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
        let Some((registry, which)) = self.registry(catalog)? else {
            let digest = format!("sha256:{}", sha256(image.to_string()));
            return Ok(digest.parse().expect("a hash is a digest"));
        };
        let image = place(image, &which.public_name)?;
        let path = format!("/v2/{}/manifests/{}", image.repository, image.wanted());
        let asked = (which, path);
        let (which, path) = &asked;
        self.looks.ask(&asked, look(&registry, &which.public_name, &image, path)).await
    }
}

/// The digest that the registry says an image has.
async fn look(
    registry: &Client,
    public_name: &str,
    image: &ImageReference,
    path: &str,
) -> Result<Digest, Problem> {
    let answer = match registry.send(Method::HEAD, path, None::<&()>).await {
        // A refusal of a look has no text that says why.
        Err(CallError::Status { .. }) => registry.send(Method::GET, path, None::<&()>).await,
        answer => answer,
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(CallError::Status { status: status @ (403 | 404), detail, .. }) => {
            let mut problem = not_there(image, public_name, detail);
            if status == 404 {
                problem.code = ProblemCode::ImageNotFound;
            }
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

/// The image as a registry of that name has it.
fn place(image: &ImageReference, public_name: &str) -> Result<ImageReference, Problem> {
    let Some(host) = image.registry.as_ref().filter(|host| *host != public_name) else {
        return Ok(image.clone());
    };
    let there = image.repository_there();
    match format!("{host}/{there}").parse() {
        Ok(repository) => {
            let registry = Some(public_name.to_owned());
            Ok(ImageReference { registry, repository, ..image.clone() })
        }
        // With a port, or in capitals: no repository begins so.
        Err(_) => Err(refuse(image, push_first(host, public_name, there.as_str()))),
    }
}

fn push_first(host: &str, public_name: &str, repository: &str) -> String {
    format!(
        "an image of this platform's registry; push it there first, without {host}: \
         docker tag, then docker push {public_name}/{repository}"
    )
}

/// What is said of an image that the registry does not give, with what it says itself.
fn not_there(image: &ImageReference, public_name: &str, detail: Option<String>) -> Problem {
    let here = ImageReference { registry: None, ..image.clone() };
    let told = detail.map(|detail| format!("; it says: {detail}")).unwrap_or_default();
    let (host, rest) = image.repository.as_str().split_once('/').unwrap_or_default();
    if host.contains('.') {
        return refuse(&here, format!("{}{told}", push_first(host, public_name, rest)));
    }
    let push = format!("an image in the registry; push it with docker push {public_name}/{here}");
    refuse(&here, format!("{push}{told}"))
}

fn refuse(image: &ImageReference, allowed: String) -> Problem {
    Problem::invalid_value("image", format_args!("{:?}", image.to_string()), allowed)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures_util::poll;
    use longshore_link::now;
    use longshore_trust::{RegistryPlace, joining_config};
    use tokio::net::TcpListener;

    use super::*;
    use crate::records::RegistryRecord;

    fn joined_at(address: SocketAddr) -> Catalog {
        let (address, public) = (address.to_string(), "127.0.0.1:4601".to_owned());
        let place = Some(RegistryPlace { address, public, public_secure: false });
        let mut catalog = Catalog::default();
        let key = Fingerprint::of(b"registry");
        catalog.registry = Some(RegistryRecord { joined_at: now(), key, place });
        catalog
    }

    #[tokio::test]
    async fn one_that_is_elsewhere_now_is_asked_itself() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootAuthority::open(&dir.path().join("root.json"), now()).unwrap();
        let config = joining_config(Fingerprint::of(b"root")).unwrap();
        let resolver = ImageResolver::joined(config, Arc::new(root));
        let image = "web:1".parse().unwrap();
        // Both take connections and say nothing.
        let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let after = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let catalog = joined_at(before.local_addr().unwrap());
        let mut of_before = Box::pin(resolver.resolve(&image, &catalog));
        assert!(poll!(&mut of_before).is_pending());
        let catalog = joined_at(after.local_addr().unwrap());
        tokio::select! {
            connected = after.accept() => drop(connected.unwrap()),
            answer = resolver.resolve(&image, &catalog) => panic!("{answer:?}"),
        }
    }

    #[test]
    fn an_image_of_another_registry_lies_below_its_name() {
        for (image, placed) in [
            ("default/web:1", "default/web:1"),
            ("127.0.0.1:4601/default/web:1", "127.0.0.1:4601/default/web:1"),
            ("docker.io/nginx:1.27", "127.0.0.1:4601/docker.io/library/nginx:1.27"),
            ("docker.io/team/app", "127.0.0.1:4601/docker.io/team/app"),
            ("ghcr.io/app:1", "127.0.0.1:4601/ghcr.io/app:1"),
        ] {
            let placed_there = place(&image.parse().unwrap(), "127.0.0.1:4601").unwrap();
            assert_eq!(placed_there.to_string(), placed);
            assert_eq!(place(&placed_there, "127.0.0.1:4601").unwrap(), placed_there);
        }
        for bad in ["127.0.0.1:5000/default/web:1", "Example.com/web"] {
            let problem = place(&bad.parse().unwrap(), "127.0.0.1:4601").unwrap_err();
            assert!(format!("{problem:?}").contains("push it there first"), "{problem:?}");
        }
    }
}
