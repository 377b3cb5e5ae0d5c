//! A location without sockets: what the global plane and its nodes would send is handed over, and what they would
//! be told is asked for.
//!
//! For simulations, which give it a store, run its tasks in an order of their own and decide what becomes of each
//! message. Everything between is the keeper, as in [`crate::run`].

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use longshore_api::links::{AllotmentSet, Assigned, NodeReport, Reach, ReportTaken};
use longshore_link::Service;
use longshore_store::Store;
use longshore_types::{InstanceId, LocationName, NodeName, Traits};
use tokio::sync::{oneshot, watch};

use crate::LocationError;
use crate::keeper::{Event, Handle, Heard, Keeper};
use crate::life::Life;
use crate::metrics::{Metrics, Watched};
pub use crate::state::Reported;

/// One that has begun.
#[derive(Clone)]
pub struct Simulated(Handle);

impl Simulated {
    /// A location with what is stored. Its log of decisions lies in `dir`.
    ///
    /// # Errors
    ///
    /// As [`crate::run`].
    pub async fn begin(
        name: LocationName,
        store: Arc<dyn Store>,
        dir: &Path,
        service: &Service,
    ) -> Result<Self, LocationError> {
        let watched = Watched::new(&Metrics::default(), dir, service);
        let named = (name, Traits::default(), Life::default());
        let restored = Keeper::restore(named, None, store, service.shutdown(), watched);
        let (keeper, handle) = restored.await?;
        service.spawn("keeper", keeper.run());
        Ok(Self(handle))
    }

    /// Takes over what the global plane allots. What comes while too much waits is lost.
    pub fn take_allotments(&self, set: AllotmentSet) {
        let _ = self.0.events.try_send(Event::Allotments(set));
    }

    /// Whether something that it was told builds on what it does not have, so that it asks for the whole.
    pub fn asks_for_whole(&self) -> bool {
        self.0.missed.notified().now_or_never().is_some()
    }

    /// Takes over what a node says; gives what the node is answered, or nothing. What comes while too much waits is
    /// lost.
    pub fn take_report(
        &self,
        report: NodeReport,
    ) -> impl Future<Output = Option<ReportTaken>> + Send + 'static {
        let (sender, heard) = oneshot::channel();
        let _ = self.0.events.try_send(Event::Report(Box::new(report), Reach::Here, sender));
        async move {
            match heard.await {
                Ok(Heard::Stored(taken)) => Some(taken),
                Ok(Heard::Unknown) => Some(ReportTaken { number: None }),
                Ok(Heard::NoRoom) | Err(_) => None,
            }
        }
    }

    /// Stops an instance for a user, who does not wait for the answer.
    pub fn stop(&self, instance: InstanceId) {
        let _ = self.0.events.try_send(Event::Stop(instance, oneshot::channel().0));
    }

    /// What a node is to do; nothing as long as it is not known.
    pub fn assigned(&self, node: &NodeName) -> Option<Arc<Assigned>> {
        self.0.assignments.of(node)
    }

    /// What the global plane is to be told; nothing until the location has settled.
    pub fn report(&self) -> watch::Receiver<Arc<Option<Reported>>> {
        self.0.report.clone()
    }
}
