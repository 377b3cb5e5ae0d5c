//! How nodes are called: those of this machine by their sockets, those that joined over connections that they
//! open themselves. And how ingresses reach the instances of the latter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use longshore_api::links::{NodeReport, Reach};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Endpoint, Refusal, Reverses, Service, Upgrade};
use longshore_trust::Name;
use longshore_types::{Digest, NodeName};
use tokio::sync::Notify;

use crate::trust::Trust;

/// How often to look which gates can be dialled.
const LOOK: Duration = Duration::from_secs(60);

/// The gates of all nodes.
pub struct Gates {
    trust: Arc<Trust>,
    service: Service,
    /// What each node reported last.
    reported: Mutex<BTreeMap<NodeName, Reported>>,
    reverses: Reverses,
    /// A gate was reported that was not before.
    new: Notify,
}

/// What a node reported.
struct Reported {
    gate: Endpoint,
    /// The images that it has.
    images: BTreeSet<Digest>,
}

impl Gates {
    pub fn new(trust: Arc<Trust>, service: Service) -> Self {
        let (reported, reverses, new) = Default::default();
        Self { trust, service, reported, reverses, new }
    }

    /// Takes over where a node says that its gate is and which images it has, and says how ingresses reach its
    /// instances.
    ///
    /// # Errors
    ///
    /// When such a node has no such gate. Of one on another machine only a gate that shows its certificate
    /// will do: with any other word it could have this location speak to whom it likes.
    pub fn reported(&self, report: &NodeReport) -> Result<Reach, Refusal> {
        let NodeReport { node, gate, images, .. } = report;
        let refuse = |why: String| Refusal(Problem::new(ProblemCode::InvalidRequest, why));
        let endpoint: Endpoint = gate.parse().map_err(refuse)?;
        let joined = self.trust.joined(node);
        if joined.is_some() != matches!(endpoint, Endpoint::Tls(_)) {
            let what = if joined.is_some() { "another machine" } else { "this machine" };
            return Err(refuse(format!("{gate} is no gate of a node on {what}")));
        }
        let images = images.iter().copied().collect();
        let now = Reported { gate: endpoint.clone(), images };
        let before = self.gates().insert(node.clone(), now).map(|before| before.gate);
        let Some(joined) = joined else { return Ok(Reach::Here) };
        if before != Some(endpoint) {
            self.new.notify_one();
        }
        Ok(if joined.is_behind { Reach::Location } else { Reach::Gate(gate.clone()) })
    }

    /// Keeps a connection that a node opened, to call it over that.
    pub fn accept(&self, node: &NodeName, upgrade: Upgrade) -> Result<Response, Refusal> {
        let joined = self.trust.joined(node).ok_or_else(|| {
            let detail = format!("node {node} is on this machine and is dialled");
            Refusal(Problem::new(ProblemCode::InvalidRequest, detail))
        })?;
        self.reverses.of(&self.trust.name_of(node), joined.key).accept(upgrade, &self.service)
    }

    /// A client of the gate of a node.
    pub fn client(&self, node: &NodeName) -> Result<Client, Refusal> {
        if let Some(joined) = self.trust.joined(node) {
            return Ok(self.reverses.of(&self.trust.name_of(node), joined.key).client().clone());
        }
        match self.gates().get(node) {
            Some(Reported { gate: gate @ Endpoint::Unix(_), .. }) => Ok(Client::new(gate.clone())),
            _ => {
                let detail = format!("node {node} has not reported since the location was started");
                Err(Problem::new(ProblemCode::Unavailable, detail).into())
            }
        }
    }

    /// Looks again and again which of the nodes that joined can be dialled from here.
    pub async fn look(self: Arc<Self>) {
        loop {
            let joined = self.trust.all_joined();
            self.reverses.retain(|name| match name {
                Name::Node(_, node) => joined.contains(node),
                _ => false,
            });
            let gates: Vec<_> = {
                let mut gates = self.gates();
                gates.retain(|node, Reported { gate, .. }| {
                    matches!(gate, Endpoint::Unix(_)) || joined.contains(node)
                });
                let elsewhere = gates.iter().filter(|(node, _)| joined.contains(*node));
                elsewhere.map(|(node, reported)| (node.clone(), reported.gate.clone())).collect()
            };
            let looks = gates.into_iter().map(|(node, gate)| self.look_at(node, gate));
            futures_util::future::join_all(looks).await;
            // Neither of the two is an error.
            let _ = tokio::time::timeout(LOOK, self.new.notified()).await;
        }
    }

    async fn look_at(&self, node: NodeName, gate: Endpoint) {
        let client = match self.trust.dial(&node, gate) {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%node, ?error, "cannot look at a gate");
                return;
            }
        };
        // Whatever it says to this: it is that node.
        let answer = client.get::<serde::de::IgnoredAny>("/").await;
        let is_behind =
            matches!(answer, Err(CallError::Unreachable { .. } | CallError::TimedOut { .. }));
        if let Err(error) = self.trust.note_behind(&node, is_behind).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, %node, "cannot note whether a gate can be dialled");
        }
    }

    /// The gate of a node that joined, where that can be dialled from here, and whether it has an image.
    pub fn dialled(&self, node: &NodeName, image: &Digest) -> Option<(Endpoint, bool)> {
        self.trust.joined(node).filter(|joined| !joined.is_behind)?;
        let gates = self.gates();
        let Reported { gate, images } = gates.get(node)?;
        Some((gate.clone(), images.contains(image)))
    }

    fn gates(&self) -> MutexGuard<'_, BTreeMap<NodeName, Reported>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
