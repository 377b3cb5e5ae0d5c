//! The registry: on a machine of the control plane's, or one that joined from another.
//!
//! A world has one. One that joined is known by its key, from when it joined until it is removed: its certificate
//! alone opens nothing after that. Where it is, it says itself at each start, and locations are told when that
//! changes. Rejected: several registries, between which images would have to go; its place in the join token,
//! which would be wrong once its machine has another address.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::StreamExt as _;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Endpoint, Refusal, json_lines, not_for, now, watch_lines};
use longshore_store::{Compare, Transaction};
use longshore_trust::{
    CertificateRequest, Fingerprint, JoinAs, Name, Peer, RegistryAccess, RegistryJoinRequest,
    RegistryPlace, RegistryTold, RootAuthority, Signed,
};
use longshore_types::LocationName;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::api::store_failed;
use crate::catalog::Catalog;
use crate::events::with_event;
use crate::joining::{nobody, signed, use_up, useless};
use crate::records::{Key, RegistryRecord, decode, encode};
use crate::{Plane, PublicRegistry, RegistryChoice, links};

/// How often a change is tried that others make another of meanwhile.
const TRIES: u32 = 5;

impl Plane {
    /// Whether a peer is the registry.
    pub fn is_registry(&self, peer: &Peer) -> bool {
        match (&self.registry, peer) {
            (RegistryChoice::At { .. }, Peer::Local) => true,
            // One elsewhere cannot be spoken for from this machine either.
            (RegistryChoice::Joined, Peer::Known { name: Name::Registry, key, .. }) => {
                self.has_joined_by(*key)
            }
            _ => false,
        }
    }

    /// Whether the registry is one that joined by this key.
    fn has_joined_by(&self, key: Fingerprint) -> bool {
        self.registry == RegistryChoice::Joined
            && self.catalog().registry.as_ref().is_some_and(|record| record.key == key)
    }

    /// The registry as users see it; none while none has joined that should.
    pub fn public_registry(&self) -> Option<PublicRegistry> {
        match &self.registry {
            RegistryChoice::At { public, .. } => Some(public.clone()),
            RegistryChoice::Joined => {
                let RegistryPlace { public, public_secure, .. } =
                    self.catalog().registry_place()?.clone();
                Some(PublicRegistry { authority: public, is_secure: public_secure })
            }
        }
    }

    /// From where a location has images.
    fn registry_access(
        &self,
        catalog: &Catalog,
        location: &LocationName,
    ) -> Result<RegistryAccess, Problem> {
        let (key, address, is_own) = match &self.registry {
            RegistryChoice::At { .. } => {
                let joining = self.joining.as_ref();
                let address = joining.and_then(|joining| joining.registry_advertised.clone());
                let address = address.ok_or_else(|| {
                    let detail =
                        "the registry listens for no locations: start it with --locations-listen";
                    Problem::new(ProblemCode::Unavailable, detail)
                })?;
                (None, address, true)
            }
            RegistryChoice::Joined => {
                let (key, place) = catalog.joined_registry()?;
                (Some(key), place.address.clone(), false)
            }
        };
        let token = token(&self.root, key, &of_location(location));
        Ok(RegistryAccess { address, token, is_own })
    }
}

impl Catalog {
    /// Where the registry is that joined, once it said so.
    pub fn registry_place(&self) -> Option<&RegistryPlace> {
        self.registry.as_ref()?.place.as_ref()
    }

    /// The same with its key, or a problem that says what is missing.
    pub fn joined_registry(&self) -> Result<(Fingerprint, &RegistryPlace), Problem> {
        let missing = match &self.registry {
            None => {
                "no registry has joined; `longshore join-token --role registry` shows the command that \
                 joins one"
            }
            Some(_) => "the registry has joined and has not said yet where it is; does it run?",
        };
        let key = self.registry.as_ref().map(|record| record.key);
        let known = key.zip(self.registry_place());
        known.ok_or_else(|| Problem::new(ProblemCode::Unavailable, missing))
    }
}

/// Lets a registry in whose token is good, where there is none.
pub async fn join(
    State(plane): State<Arc<Plane>>,
    Body(RegistryJoinRequest { secret, key }): Body<RegistryJoinRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    let secret = Fingerprint::of(secret.as_bytes());
    let (change, _) = use_up(&plane, secret, &JoinAs::Registry).await?;
    refuse_second(&plane)?;
    let own = Key::Registry.to_string();
    let record = RegistryRecord { joined_at: now(), key: key.fingerprint(), place: None };
    let change = change.when(Compare::absent(&own)).put(own, encode(&record));
    let change = with_event(change, &nobody(), None, "registry join", record.key);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    if !result.succeeded {
        return Err(useless());
    }
    plane.catalog.reached(result.revision).await;
    tracing::info!(key = %record.key, "a registry joined");
    signed(plane.root.sign(&Name::Registry, &key, now()))
}

/// Says why no registry can join, when none can.
pub fn refuse_second(plane: &Plane) -> Result<(), Refusal> {
    let detail = match &plane.registry {
        RegistryChoice::At { .. } => {
            "this platform runs a registry of its own; to have one on another machine, start it with \
             --registry joined"
        }
        RegistryChoice::Joined if plane.catalog().registry.is_some() => {
            "a registry has joined already; remove that one first: longshore registry rm"
        }
        RegistryChoice::Joined => return Ok(()),
    };
    Err(Problem::new(ProblemCode::Conflict, detail).into())
}

/// Names the registry: one of this machine with any key, another with that by which it joined.
pub async fn certificate(
    State(plane): State<Arc<Plane>>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    match &plane.registry {
        RegistryChoice::At { .. } => signed(plane.root.sign(&Name::Registry, &key, now())),
        RegistryChoice::Joined => name_joined(&plane, &CertificateRequest { key }),
    }
}

/// The same for one that joined and whose certificate has expired, so that it shows none. Only the key by which it
/// joined is asked for: what is said of that is of use to who has the other half of it, and to nobody else.
pub async fn renew_expired(
    State(plane): State<Arc<Plane>>,
    Body(request): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    name_joined(&plane, &request)
}

fn name_joined(
    plane: &Plane,
    CertificateRequest { key }: &CertificateRequest,
) -> Result<axum::Json<Signed>, Refusal> {
    if !plane.has_joined_by(key.fingerprint()) {
        let detail = "no registry joined with this key, or it was removed";
        return Err(Problem::new(ProblemCode::Forbidden, detail).into());
    }
    signed(plane.root.sign(&Name::Registry, key, now()))
}

/// The registry that joined says where it is.
pub async fn place(
    State(plane): State<Arc<Plane>>,
    Extension(peer): Extension<Peer>,
    Body(place): Body<RegistryPlace>,
) -> Result<axum::Json<()>, Refusal> {
    // One of this machine is where its control plane was told.
    let Peer::Known { key, .. } = &peer else { return Err(not_for(&peer)) };
    for (field, address) in [("address", &place.address), ("public", &place.public)] {
        if Endpoint::Tls(address.clone()).to_string().parse::<Endpoint>().is_err() {
            let allowed = "a host and a port, such as 203.0.113.1:4605".to_owned();
            return Err(Problem::invalid_value(field, format_args!("{address:?}"), allowed).into());
        }
    }
    let own = Key::Registry.to_string();
    for _ in 0..TRIES {
        let stored = plane.store.get(&own).await.map_err(store_failed)?;
        let Some(stored) = stored else { return Err(not_for(&peer)) };
        let record: RegistryRecord = decode(&stored).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot read the registry");
            Problem::new(ProblemCode::Internal, "what is kept of the registry cannot be read")
        })?;
        if record.key != *key {
            return Err(not_for(&peer));
        }
        if record.place.as_ref() == Some(&place) {
            return Ok(axum::Json(()));
        }
        let record = RegistryRecord { place: Some(place.clone()), ..record };
        let change =
            Transaction::new().when(Compare::unchanged(&stored)).put(&own, encode(&record));
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        if result.succeeded {
            tracing::info!(address = place.address, public = place.public, "the registry is there");
            plane.catalog.reached(result.revision).await;
            return Ok(axum::Json(()));
        }
    }
    let detail = "others change what is kept of the registry all the time; try again";
    Err(Problem::new(ProblemCode::Unavailable, detail).into())
}

/// Waits until who is known by this key is the registry no more.
pub async fn removed(mut catalog: watch::Receiver<Arc<Catalog>>, peer: Peer) {
    // One of this machine is never removed.
    let Peer::Known { key, .. } = peer else { return std::future::pending().await };
    let is_another =
        |catalog: &Arc<Catalog>| catalog.registry.as_ref().is_none_or(|record| record.key != key);
    if catalog.wait_for(is_another).await.is_err() {
        // The control plane ends.
        std::future::pending::<()>().await;
    }
}

/// Who asks the registry which digest a tag has.
pub const CONTROL_PLANE: &str = "the control plane";

/// A location that pulls from the registry.
pub fn of_location(location: &LocationName) -> String {
    format!("location {location}")
}

/// The token by which somebody pulls. It follows from the root, so that nothing has to be kept, and every control plane
/// of the world says the same; and from the key of a registry that joined, so that what was shown to that opens no
/// other in its place.
pub fn token(root: &RootAuthority, registry: Option<Fingerprint>, who: &str) -> Zeroizing<String> {
    let of = registry.map_or("the registry".to_owned(), |key| format!("the registry {key}"));
    let secret = root.secret_for(&format!("{of} by {who}"));
    Zeroizing::new(format!("lsh_{}", *secret))
}

/// From where a location has images.
pub async fn access(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
) -> Result<axum::Json<RegistryAccess>, Refusal> {
    Ok(axum::Json(plane.registry_access(&plane.catalog(), &location)?))
}

/// The same, again at each change.
pub async fn told(State(plane): State<Arc<Plane>>, Path(location): Path<LocationName>) -> Response {
    let shutdown = plane.service.shutdown();
    let gone = links::removed(plane.catalog.subscribe(), location.clone());
    let mut last = None;
    let news = watch_lines(plane.catalog.subscribe()).filter_map(move |catalog| {
        let told = RegistryTold { access: plane.registry_access(&catalog, &location).ok() };
        let is_news = last.as_ref() != Some(&told);
        std::future::ready(is_news.then(|| {
            last = Some(told.clone());
            told
        }))
    });
    json_lines(news.take_until(gone), shutdown)
}
