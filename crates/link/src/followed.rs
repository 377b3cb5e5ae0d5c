//! A client of whichever of several services leads.
//!
//! A service that does not lead says where the one is that does
//! ([`longshore_api::ProblemCode::NotLeader`]), and that is where the next call goes. When it can no
//! longer be reached, those that were given are tried one after the other. Whoever calls does so again
//! after a failure anyway, with waits between, so nothing is tried again here but what was told to
//! be elsewhere.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Method;
use longshore_api::ProblemCode;
use longshore_trust::Name;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::LineStream;
use crate::{CallError, Client, Endpoint, Endpoints, Tunnel};

/// The client. Cheap to clone; all clones go to the same service.
#[derive(Debug, Clone)]
pub struct Followed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    given: Vec<Endpoint>,
    /// What is shown to a service on another machine, and who that has to be.
    shown: Option<(Arc<ClientConfig>, Name)>,
    place: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    client: Client,
    /// Which of those that were given comes next.
    next: usize,
}

impl Followed {
    /// A client of the leader of these.
    pub fn new(endpoints: Endpoints) -> Self {
        Self::showing(endpoints, None)
    }

    /// The same on other machines: shows what `config` has, and expects to find `name` everywhere.
    pub fn secured(endpoints: Endpoints, config: Arc<ClientConfig>, name: Name) -> Self {
        Self::showing(endpoints, Some((config, name)))
    }

    fn showing(endpoints: Endpoints, shown: Option<(Arc<ClientConfig>, Name)>) -> Self {
        let client = dial(endpoints.first.clone(), shown.as_ref());
        let given: Vec<_> = [endpoints.first].into_iter().chain(endpoints.rest).collect();
        let next = 1 % given.len();
        Self(Arc::new(Inner { given, shown, place: Mutex::new(Place { client, next }) }))
    }

    /// As [`Client::call`].
    pub async fn call<B: Serialize + Sync, T: DeserializeOwned + Send>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, CallError> {
        self.follow(|client| {
            let method = method.clone();
            async move { client.call(method, path, body).await }
        })
        .await
    }

    /// As [`Client::watch`].
    pub async fn watch<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<LineStream<T>, CallError> {
        self.follow(|client| async move { client.watch(path).await }).await
    }

    /// As [`Client::tunnel`].
    pub async fn tunnel(&self, path: &str) -> Result<Tunnel, CallError> {
        self.follow(|client| async move { client.tunnel(path).await }).await
    }

    /// Makes a call, once more where it is told to be made elsewhere.
    async fn follow<T, F: Future<Output = Result<T, CallError>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<T, CallError> {
        let asked = self.place().client.clone();
        let outcome = call(asked.clone()).await;
        let Some(leader) = leader(&outcome) else { return self.noted(&asked, outcome) };
        if leader == *asked.endpoint() {
            return self.noted(&asked, outcome);
        }
        tracing::info!(%leader, "another control plane leads; going there");
        let leader = dial(leader, self.0.shown.as_ref());
        self.place().client = leader.clone();
        let outcome = call(leader.clone()).await;
        self.noted(&leader, outcome)
    }

    /// Goes on to the next service when this one was of no use.
    fn noted<T>(&self, asked: &Client, outcome: Result<T, CallError>) -> Result<T, CallError> {
        let is_of_no_use = outcome.as_ref().is_err_and(|error| match error {
            CallError::Unreachable { .. } | CallError::TimedOut { .. } => true,
            CallError::Refused(problem) => {
                matches!(
                    problem.code,
                    ProblemCode::NoLeader | ProblemCode::NotLeader | ProblemCode::Superseded
                )
            }
            CallError::Status { .. } | CallError::Malformed { .. } => false,
        });
        if is_of_no_use {
            self.leave(asked.endpoint());
        }
        outcome
    }

    /// Goes on to the next service, unless another call has done so already.
    fn leave(&self, asked: &Endpoint) {
        let mut place = self.place();
        if place.client.endpoint() == asked {
            place.client = dial(self.0.given[place.next].clone(), self.0.shown.as_ref());
            place.next = (place.next + 1) % self.0.given.len();
        }
    }

    /// Where the next call goes first.
    pub fn endpoint(&self) -> Endpoint {
        self.place().client.endpoint().clone()
    }

    /// Goes on to the next service: what the present one says is of no use.
    pub fn pass_over(&self) {
        self.leave(&self.endpoint());
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dial(endpoint: Endpoint, shown: Option<&(Arc<ClientConfig>, Name)>) -> Client {
    match shown {
        Some((config, name)) => Client::secured(endpoint, Arc::clone(config), name.clone()),
        None => Client::new(endpoint),
    }
}

/// Where the leader is, when a service says that it is elsewhere.
fn leader<T>(outcome: &Result<T, CallError>) -> Option<Endpoint> {
    let Err(CallError::Refused(problem)) = outcome else { return None };
    problem.leader.as_deref().filter(|_| problem.code == ProblemCode::NotLeader)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::State;
    use axum::routing::get;
    use longshore_api::Problem;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Listener, Refusal};

    /// Some services.
    #[derive(Default)]
    struct World {
        all: Vec<Endpoint>,
        /// Which of them leads.
        leads: Option<usize>,
    }

    type Shared = Arc<Mutex<World>>;

    async fn answer(
        State((number, world)): State<(usize, Shared)>,
    ) -> Result<axum::Json<usize>, Refusal> {
        let world = world.lock().unwrap();
        if world.leads == Some(number) {
            return Ok(axum::Json(number));
        }
        let mut problem = Problem::new(ProblemCode::NotLeader, "not here");
        problem.leader = world.leads.map(|leader| world.all[leader].to_string().into());
        Err(Refusal(problem))
    }

    fn serve(world: &Shared) -> CancellationToken {
        let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
        let number = world.lock().unwrap().all.len();
        world.lock().unwrap().all.push(listener.endpoint().unwrap());
        let router = Router::new().route("/", get(answer)).with_state((number, Arc::clone(world)));
        let end = CancellationToken::new();
        tokio::spawn(listener.serve(router, end.clone()));
        end
    }

    #[tokio::test]
    async fn calls_go_to_whoever_leads_and_on_when_that_one_is_gone() {
        let world = Shared::default();
        let ends: Vec<_> = (0..3).map(|_| serve(&world)).collect();
        let given = world.lock().unwrap().all.clone();
        let leads = |number| world.lock().unwrap().leads = number;
        // The last one is told of by the others alone.
        let endpoints = Endpoints { first: given[0].clone(), rest: vec![given[1].clone()] };
        let followed = Followed::new(endpoints);
        let ask = || followed.call::<(), usize>(Method::GET, "/", None);
        assert!(ask().await.is_err(), "nobody leads");
        leads(Some(2));
        assert_eq!(ask().await.unwrap(), 2);
        assert_eq!(ask().await.unwrap(), 2);
        // It dies, and those that are left know nothing yet, and then that the second leads.
        leads(None);
        ends[2].cancel();
        for _ in 0..4 {
            assert!(ask().await.is_err());
        }
        leads(Some(1));
        assert_eq!(ask().await.unwrap(), 1);
        // Back and forth, with one of those that were given gone.
        leads(Some(0));
        assert_eq!(ask().await.unwrap(), 0);
        ends[1].cancel();
        assert_eq!(ask().await.unwrap(), 0);
    }
}
