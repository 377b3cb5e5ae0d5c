//! Who may speak to this location over a network, and as whom it speaks itself.
//!
//! The location has an authority of its own, which the global plane renews within its 90 days. With it the
//! location names its roles for a day each, and goes on doing so while the global plane is away. A node is known
//! by its key, from when it joined until it is removed: its certificate alone opens nothing after that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use http::Method;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{
    CallError, Client, Endpoint, Followed, Listener, Refusal, Service, chain, now,
};
use longshore_store::{
    Compare, Page, Record, RecordError, Relation, Store, StoreError, Transaction,
};
use longshore_trust::{
    AuthorityError, CertificateRequest, Credentials, Fingerprint, Identity, JoinRequest, JoinRole,
    LocationAuthority, Name, NewKey, Peer, PublicKey, RedeemRequest, Signed, client_config,
};
use longshore_types::{LocationName, NodeName, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::LocationError;
use crate::joined::{AUTHORITY_FILE, Joined};
use crate::keeper::Cordons;

/// Below this, one record per node that joined.
pub const NODES: &str = "/nodes/";
/// How often to look whether something has to be renewed.
const LOOK: Duration = Duration::from_secs(60);
/// How long to wait before the global plane is asked again for a first authority.
const RETRY: Duration = Duration::from_secs(1);
/// How long a node that is removed may still be told to end what it has.
const FAREWELL: Duration = Duration::from_secs(2);

/// A node that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its key.
    pub key: Fingerprint,
    /// When.
    joined_at: Timestamp,
    /// True when its gate could not be dialled from here, the last time that was tried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_behind: bool,
}

impl Record for NodeRecord {
    const KIND: &'static str = "node";
}

fn node_key(node: &NodeName) -> String {
    format!("{NODES}{node}")
}

/// The records of nodes that joined in an earlier life of the location, by their keys in the store.
pub fn node_records(
    keys: &BTreeMap<NodeName, Fingerprint>,
) -> Result<Vec<(String, bytes::Bytes)>, RecordError> {
    let joined_at = now();
    let record = |(node, key): (&NodeName, &Fingerprint)| {
        // Whether its gate can be dialled is found out anew; what goes through the location comes there either way.
        let record = NodeRecord { key: *key, joined_at, is_behind: true };
        Ok((node_key(node), longshore_store::record::encode(&record)?))
    };
    keys.iter().map(record).collect()
}

/// Where nodes of other machines call.
#[derive(Debug)]
pub struct Joining {
    /// Where is listened for them.
    pub listener: Listener,
    /// The `host:port` by which they reach that.
    pub advertised: String,
}

/// What the location knows of who is who.
pub struct Trust {
    pub location: LocationName,
    global: Followed,
    /// The global plane, shown nothing; absent on its machine.
    bare: Option<Followed>,
    store: Arc<dyn Store>,
    /// Holds the key of the authority and what the global plane said of it.
    file: PathBuf,
    authority: RwLock<Option<Arc<LocationAuthority>>>,
    credentials: RwLock<Option<Credentials>>,
    /// The nodes that joined. Others are of this machine, or nobody's.
    nodes: watch::Sender<BTreeMap<NodeName, NodeRecord>>,
}

/// What makes the location ask, or fail to.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Global(#[from] CallError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] longshore_trust::TlsError),
}

impl Trust {
    /// What is stored of it.
    pub async fn open(
        location: LocationName,
        (global, bare): (Followed, Option<Followed>),
        store: Arc<dyn Store>,
        data_dir: &Path,
        joined: Option<Joined>,
    ) -> Result<Self, LocationError> {
        let mut nodes = BTreeMap::new();
        for stored in store.list(NODES, Page::default()).await?.items {
            if let Some(Ok(node)) = stored.key.strip_prefix(NODES).map(str::parse) {
                nodes.insert(node, stored.decode::<NodeRecord>()?);
            }
        }
        let (authority, credentials) =
            joined.map(|joined| (Arc::new(joined.authority), joined.credentials)).unzip();
        Ok(Self {
            location,
            global,
            bare,
            store,
            file: data_dir.join(AUTHORITY_FILE),
            authority: RwLock::new(authority),
            credentials: RwLock::new(credentials),
            nodes: watch::Sender::new(nodes),
        })
    }

    /// Keeps the authority and the location's own certificate good, and serves nodes of other machines
    /// once there are any, where they may join.
    pub async fn keep(self: Arc<Self>, joining: Option<Joining>, router: Router, service: Service) {
        let mut waiting = joining.map(|joining| (joining.listener, router));
        let mut own = None;
        loop {
            let wait = match self.renew(&mut own).await {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no authority for now"
                    );
                    if self.credentials().is_none() { RETRY } else { LOOK }
                }
            };
            let credentials = self.credentials();
            if let Some(credentials) = credentials
                && let Some((listener, router)) = waiting.take()
            {
                let served = listener.serve_with(credentials, router, service.shutdown());
                service.spawn("nodes", served);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Renews what is due: the authority, and then `own`, what this location shows itself.
    async fn renew(&self, own: &mut Option<Identity>) -> Result<(), RenewError> {
        let held = self.authority();
        let authority = match held {
            Some(authority) if !authority.is_due(now()) => authority,
            held => match (self.obtain().await, held) {
                (Ok(authority), _) => {
                    let authority = Arc::new(authority);
                    *write(&self.authority) = Some(Arc::clone(&authority));
                    authority
                }
                // It is good for weeks still, so its roles are named on.
                (Err(error), Some(authority)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the authority is not renewed"
                    );
                    authority
                }
                (Err(error), None) => return Err(error),
            },
        };
        if own.as_ref().is_some_and(|own| !own.is_due(now())) {
            return Ok(());
        }
        let named = authority.identify(&Name::Location(self.location.clone()), now())?;
        let credentials = self.credentials();
        match credentials {
            Some(credentials) => credentials.replace(&named)?,
            None => *write(&self.credentials) = Some(Credentials::new(&named)?),
        }
        *own = Some(named);
        Ok(())
    }

    /// The authority from its file, or from the global plane when that is missing or should be renewed.
    async fn obtain(&self) -> Result<LocationAuthority, RenewError> {
        let failed = |source| RenewError::File { path: self.file.clone(), source };
        let kept = Identity::load(&self.file).map_err(failed)?;
        let asked = match &kept {
            Some(identity) if !identity.is_due(now()) => {
                return Ok(LocationAuthority::new(self.location.clone(), identity)?);
            }
            Some(identity) => {
                let signed = self.ask(identity.public_key()?, identity.has_expired(now())).await;
                signed.map(|signed| identity.renewed(&signed, now()))
            }
            None => {
                let key = NewKey::generate()?;
                self.ask(key.public(), false).await.map(|signed| key.signed(&signed, now()))
            }
        };
        let identity = match (asked, kept) {
            (Ok(identity), _) => {
                let identity = identity.map_err(failed)?;
                identity.save(&self.file).map_err(failed)?;
                identity
            }
            (Err(error), Some(kept)) if !kept.has_expired(now()) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the authority is not renewed"
                );
                kept
            }
            (Err(error), _) => return Err(error.into()),
        };
        Ok(LocationAuthority::new(self.location.clone(), &identity)?)
    }

    /// Asks for what is said of the authority's key; `expired` says that what was said of it is of no use.
    async fn ask(&self, key: PublicKey, expired: bool) -> Result<Signed, CallError> {
        let (global, path) = match &self.bare {
            // Nobody lets in who shows what it signs.
            Some(bare) if expired => (bare, format!("/renew/{}", self.location)),
            _ => (&self.global, format!("/link/locations/{}/authority", self.location)),
        };
        global.call(Method::POST, &path, Some(&CertificateRequest { key })).await
    }

    fn authority(&self) -> Option<Arc<LocationAuthority>> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By which the authority is known, once there is one.
    pub fn authority_key(&self) -> Option<Fingerprint> {
        Some(self.authority()?.key())
    }

    /// What is shown to others; nothing before there is an authority.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known of a node that joined; nothing of one of this machine.
    pub fn joined(&self, node: &NodeName) -> Option<NodeRecord> {
        self.nodes.borrow().get(node).cloned()
    }

    /// The nodes that joined.
    pub fn all_joined(&self) -> BTreeSet<NodeName> {
        self.nodes.borrow().keys().cloned().collect()
    }

    /// The same, as it changes, with what is known of each.
    pub fn watch_joined(&self) -> watch::Receiver<BTreeMap<NodeName, NodeRecord>> {
        self.nodes.subscribe()
    }

    /// The keys of the nodes that joined, as they are told.
    pub fn node_keys(&self) -> BTreeMap<NodeName, String> {
        let nodes = self.nodes.borrow();
        nodes.iter().map(|(node, record)| (node.clone(), record.key.to_string())).collect()
    }

    /// What certificates of a node say.
    pub fn name_of(&self, node: &NodeName) -> Name {
        Name::Node(self.location.clone(), node.clone())
    }

    /// A client that dials a node that joined.
    pub fn dial(&self, node: &NodeName, gate: Endpoint) -> Result<Client, Refusal> {
        let none = || unavailable("this location has no certificate yet; try again");
        let config = client_config(&self.credentials().ok_or_else(none)?).map_err(|_| none())?;
        Ok(Client::secured(gate, config, self.name_of(node)))
    }

    /// Keeps in mind whether the gate of a node can be dialled from here.
    pub async fn note_behind(&self, node: &NodeName, is_behind: bool) -> Result<(), LocationError> {
        let Some(known) = self.joined(node).filter(|record| record.is_behind != is_behind) else {
            return Ok(());
        };
        tracing::info!(%node, is_behind, "whether its gate can be dialled changed");
        let record = NodeRecord { is_behind, ..known.clone() };
        let (key, value) = (node_key(node), longshore_store::record::encode(&record)?);
        // One that was removed meanwhile, or joined anew, is another.
        let known = longshore_store::record::encode(&known)?;
        let same = Compare::value(&key, Relation::Equal, known);
        let change = Transaction::new().when(same).put(key, value);
        if self.store.commit(change).await?.succeeded {
            self.nodes.send_modify(|nodes| _ = nodes.insert(node.clone(), record));
        }
        Ok(())
    }

    /// Whether a peer is this node, as it joined.
    pub fn is_node(&self, peer: &Peer, node: &NodeName) -> bool {
        match peer {
            // A joined node cannot be spoken for from this machine either.
            Peer::Local => !self.nodes.borrow().contains_key(node),
            Peer::Known { name: Name::Node(location, named), key, .. } => {
                let known = self.nodes.borrow();
                let joined = known.get(node).is_some_and(|record| record.key == *key);
                *location == self.location && named == node && joined
            }
            Peer::Known { .. } | Peer::Dialled(_) | Peer::Stranger => false,
        }
    }

    /// Forgets nodes that joined and were removed by an operator, for as long as it is polled.
    pub async fn forget_removed(self: Arc<Self>, mut cordons: watch::Receiver<Cordons>) {
        loop {
            let removed: Vec<NodeName> = {
                let (cordons, joined) = (cordons.borrow_and_update(), self.nodes.borrow());
                let removed = cordons.iter().filter(|(_, cordon)| cordon.removed);
                removed.map(|(node, _)| node.clone()).filter(|n| joined.contains_key(n)).collect()
            };
            if !removed.is_empty() {
                tokio::time::sleep(FAREWELL).await;
            }
            for node in removed {
                if let Err(error) = self.forget(&node).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, %node, "kept for now");
                    tokio::time::sleep(RETRY).await;
                    cordons.mark_changed();
                }
            }
            // The keeper ended, and the service with it.
            if cordons.changed().await.is_err() {
                return;
            }
        }
    }

    async fn forget(&self, node: &NodeName) -> Result<(), StoreError> {
        self.store.commit(Transaction::new().delete(node_key(node))).await?;
        tracing::info!(%node, "a node was removed");
        self.nodes.send_modify(|nodes| _ = nodes.remove(node));
        Ok(())
    }

    /// Waits until a node that joined is not one any more.
    pub async fn removed(self: Arc<Self>, node: NodeName) {
        let mut nodes = self.nodes.subscribe();
        let joined = nodes.borrow().contains_key(&node);
        // One of this machine is never removed; and an error means that the location ends.
        if !joined || nodes.wait_for(|nodes| !nodes.contains_key(&node)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets a node in whose token is good, under a name that no other has; `known` says that one of this
    /// machine has it.
    pub async fn join(&self, request: JoinRequest, known: bool) -> Result<Signed, Refusal> {
        let none = || unavailable("this location cannot let anyone in yet; try again");
        let authority = self.authority().ok_or_else(none)?;
        let node = request.node;
        let taken = || {
            let detail = format!(
                "there is a node {node} already; give another name with --name, or remove that one \
                 first: longshore nodes rm {node}"
            );
            Refusal(Problem::new(ProblemCode::Conflict, detail))
        };
        if known || self.nodes.borrow().contains_key(&node) {
            return Err(taken());
        }
        self.redeem(&request.secret, &node).await?;
        let name = Name::Node(self.location.clone(), node.clone());
        let signed =
            authority.sign(&name, &request.key, now()).map_err(|error| internal(&error))?;
        let key = request.key.fingerprint();
        let record = NodeRecord { key, joined_at: now(), is_behind: false };
        let value = longshore_store::record::encode(&record).map_err(|error| internal(&error))?;
        let key = node_key(&node);
        let change = Transaction::new().when(Compare::absent(&key)).put(key, value);
        let result = self.store.commit(change).await.map_err(|error| internal(&error))?;
        if !result.succeeded {
            return Err(taken());
        }
        tracing::info!(%node, key = %record.key, "a node joined");
        self.nodes.send_modify(|nodes| _ = nodes.insert(node.clone(), record));
        Ok(signed)
    }

    /// Uses a token up, which the global plane alone knows of.
    async fn redeem(&self, secret: &str, node: &NodeName) -> Result<(), Refusal> {
        let secret = Fingerprint::of(secret.as_bytes());
        let request = RedeemRequest { secret, role: JoinRole::Node, name: node.clone() };
        let path = format!("/link/locations/{}/join-tokens", self.location);
        let answer = self.global.call::<_, ()>(Method::POST, &path, Some(&request)).await;
        answer.map_err(|error| match error {
            CallError::Refused(problem) => problem.into(),
            error => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at a token");
                unavailable("the global control plane cannot be asked about the token; try again")
            }
        })
    }

    /// Names a node anew that joined, with the key that it joined with.
    pub fn renew_node(&self, node: NodeName, key: &PublicKey) -> Result<Signed, Refusal> {
        let joined = self.nodes.borrow().get(&node).map(|record| record.key);
        if joined != Some(key.fingerprint()) {
            let detail = format!("node {node} joined with another key");
            return Err(Problem::new(ProblemCode::Forbidden, detail).into());
        }
        self.name(&Name::Node(self.location.clone(), node), key)
    }

    /// Names an ingress of this location.
    pub fn name_ingress(&self, key: &PublicKey) -> Result<Signed, Refusal> {
        self.name(&Name::Ingress(self.location.clone()), key)
    }

    fn name(&self, name: &Name, key: &PublicKey) -> Result<Signed, Refusal> {
        let none = || unavailable("this location has no authority yet; try again");
        let authority = self.authority().ok_or_else(none)?;
        authority.sign(name, key, now()).map_err(|error| internal(&error))
    }
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(detail: &str) -> Refusal {
    Problem::new(ProblemCode::Unavailable, detail).into()
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::error!(error, "cannot name a role");
    Problem::new(ProblemCode::Internal, chain(error)).into()
}
