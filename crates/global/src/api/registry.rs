//! The registry, as operators see it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use longshore_api::v1::RegistryView;
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_store::Transaction;

use super::access::Caller;
use super::store_failed;
use crate::events::with_event;
use crate::records::Key;
use crate::{Plane, RegistryChoice};

/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

pub async fn show(State(plane): State<Arc<Plane>>) -> Json<RegistryView> {
    let asked = tokio::time::timeout(PATIENCE, plane.ask_registry()).await;
    let silent = match asked {
        Ok(Ok(())) => None,
        Ok(Err(problem)) => Some(problem.detail),
        Err(_) => Some(format!("it does not answer within {} s", PATIENCE.as_secs())),
    };
    let catalog = plane.catalog();
    let place = catalog.registry_place();
    let public = plane.public_registry();
    Json(RegistryView {
        joins: plane.registry == RegistryChoice::Joined,
        joined_at: catalog.registry.as_ref().map(|record| record.joined_at),
        address: place.map(|place| place.address.clone()),
        public_secure: public.as_ref().is_some_and(|public| public.is_secure),
        public: public.map(|public| public.authority),
        answers: silent.is_none(),
        silent,
    })
}

/// Forgets the registry that joined. Its certificate opens nothing from then on.
pub async fn remove(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
) -> Result<StatusCode, Refusal> {
    if plane.catalog().registry.is_none() {
        let problem = match &plane.registry {
            RegistryChoice::Joined => Problem::not_found("registry", "that joined"),
            RegistryChoice::At { .. } => {
                let detail =
                    "the registry is not removed: it is of the machine of the control plane";
                Problem::new(ProblemCode::Conflict, detail)
            }
        };
        return Err(problem.into());
    }
    let change = Transaction::new().delete(Key::Registry.to_string());
    let change = with_event(change, &caller.who(), None, "registry rm", "the registry");
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    Ok(StatusCode::NO_CONTENT)
}
