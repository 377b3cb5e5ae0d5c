//! Counts the requests of users by app, and tells the location how many there were.
//!
//! What counts is where a request came in and not where it was answered: the location stands for the user. So
//! requests that another location passed on are left out, as that one counted them, and those are not that nobody
//! could answer. A request costs one addition; what is told goes with the apps that had requests and not with the
//! requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use longshore_api::links::{AppRequests, Counted};
use longshore_link::{CallError, Client};
use prometheus_client::metrics::counter::Counter;
use tokio::time::MissedTickBehavior;

use crate::metrics::AppLabels;

/// How often the location is told.
const EVERY: Duration = Duration::from_secs(5);
/// How long it may take to hear it.
const WITHIN: Duration = Duration::from_secs(2);

/// What was counted of each app, and how much of it was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand(Arc<Mutex<HashMap<AppLabels, Told>>>);

#[derive(Debug)]
struct Told {
    counter: Counter,
    told: u64,
}

impl Demand {
    /// Looks from now on at what counts the requests for an app.
    pub fn watch(&self, labels: &AppLabels, counter: &Counter) {
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !apps.contains_key(labels) {
            let counter = counter.clone();
            apps.insert(labels.clone(), Told { told: counter.get(), counter });
        }
    }

    /// An app is gone.
    pub fn forget(&self, labels: &AppLabels) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(labels);
    }

    /// What came in since this was asked last.
    fn take(&self) -> Counted {
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = apps.iter_mut().filter_map(|(labels, Told { counter, told })| {
            let now = counter.get();
            let requests = now.saturating_sub(std::mem::replace(told, now));
            (requests > 0).then(|| {
                let (project, app) = labels.names();
                AppRequests { project, app, requests }
            })
        });
        Counted { apps: news.collect() }
    }
}

/// Tells the location, for ever.
pub(crate) async fn tell(demand: Demand, client: Client) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let counted = demand.take();
        if counted.apps.is_empty() {
            continue;
        }
        let call = client.call(Method::POST, "/link/demand", Some(&counted));
        let told: Result<Result<(), CallError>, _> = tokio::time::timeout(WITHIN, call).await;
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the location does not hear of requests"),
            Err(_) => tracing::debug!("the location does not hear in time of requests"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn each_request_is_told_once_and_apps_without_any_are_not() {
        let metrics = Metrics::default();
        let labels = |app: &str| AppLabels::new(&Default::default(), &app.parse().unwrap());
        let [web, api] = ["web", "api"].map(|app| metrics.of_app(&labels(app)));
        let taken = || {
            let counted = metrics.demand().take().apps.into_iter();
            let mut all: Vec<_> = counted.map(|one| (one.app.to_string(), one.requests)).collect();
            all.sort();
            all
        };
        assert_eq!(taken(), []);
        (0..3).for_each(|_| _ = web.users.inc());
        // Found anew, as after a new table: it is counted on.
        _ = metrics.of_app(&labels("web")).users.inc();
        assert_eq!(taken(), [("web".to_owned(), 4)]);
        assert_eq!(taken(), []);
        _ = api.users.inc();
        metrics.forget(&labels("web"));
        assert_eq!(taken(), [("api".to_owned(), 1)]);
        // One that comes back begins anew.
        _ = metrics.of_app(&labels("web")).users.inc();
        assert_eq!(taken(), [("web".to_owned(), 1)]);
    }
}
