//! Is the platform there? It is when a user's first deploy would work.

use std::path::Path;
use std::time::Duration;

use longshore_api::v1::{HealthView, LocationView};
use longshore_link::{CallError, Client, Endpoint};
use tokio::time::{Instant, sleep};

use super::child::Child;
use super::sockets::API_SOCKET;
use crate::context_file::Endpoints;

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After this time without being ready, the log says what is missing, and again each time it
/// passes.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until the API, the registry and the ingress answer and a node has reported.
pub async fn wait((endpoints, links): (&Endpoints, &Path), token_file: &Path, roles: &[&Child]) {
    let mut complain_at = Instant::now() + PATIENCE;
    while let Err(missing) = check((endpoints, links), token_file).await {
        if Instant::now() > complain_at {
            complain_at = Instant::now() + PATIENCE;
            let dying: Vec<_> = roles.iter().filter(|role| role.n_deaths() > 1).collect();
            for role in &dying {
                tracing::error!("{} keeps ending; its last lines say why", role.role());
            }
            tracing::warn!("not ready yet: {missing}");
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Whether a platform answers at `endpoints`.
pub async fn answers(api: &str) -> bool {
    let Ok(endpoint) = api.parse::<Endpoint>() else {
        return false;
    };
    let health = Client::new(endpoint);
    tokio::time::timeout(Duration::from_secs(2), health.get::<HealthView>("/v1/health"))
        .await
        .is_ok_and(|answer| answer.is_ok())
}

/// What is not there yet, in words.
async fn check((endpoints, links): (&Endpoints, &Path), token_file: &Path) -> Result<(), String> {
    let here = |name: &str| Endpoint::Unix(links.join(name));
    let token = std::fs::read_to_string(token_file).map_err(|error| error.to_string())?;
    let api = Client::new(here(API_SOCKET)).with_token(token.trim());
    let _: HealthView = api.get("/v1/health").await.map_err(|error| format!("the API: {error}"))?;
    // One that joins from another machine may come later.
    if !endpoints.registry.is_empty() {
        // It may not have been told yet who may do what: then it takes no push.
        let registry = Client::new(here("registry.sock")).with_token(token.trim());
        let answered = registry.send(http::Method::GET, "/v2/", None::<&()>).await;
        answered.map_err(|error| format!("the registry: {error}"))?;
    }
    let ingress = Client::new(Endpoint::Tcp(endpoints.ingress.clone()));
    match ingress.send(http::Method::GET, "/v2/", None::<&()>).await {
        // Who asks for no app at all is refused: an answer all the same.
        Ok(_) | Err(CallError::Refused(_) | CallError::Status { .. }) => {}
        Err(error) => return Err(format!("the ingress: {error}")),
    }
    let locations: Vec<LocationView> =
        api.get("/v1/locations").await.map_err(|error| format!("the API: {error}"))?;
    let mut nodes = locations.iter().flat_map(|location| &location.nodes);
    match nodes.any(|node| node.reachable) {
        true => Ok(()),
        false => Err("no node has reported".to_owned()),
    }
}
