//! A client of whichever of several services leads.
//!
//! A service that does not lead says where the one is that does
//! ([`longshore_api::ProblemCode::NotLeader`]), and that is where the next call goes. When it can no
//! longer be reached, those that were given are tried one after the other. Whoever calls does so again
//! after a failure anyway, with waits between, so nothing is tried again here but what was told to
//! be elsewhere.
//!
//! A service whose machine is frozen takes calls and answers none. A stream notices first, by the beats that it
//! misses; with that all calls under way there are given up, which would wait for an answer twice as long. For a
//! while nobody goes there then, neither in turn nor because others still take it for the leader.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use longshore_api::ProblemCode;
use longshore_trust::Name;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::LineStream;
use crate::{CallError, Client, Endpoint, Endpoints, Tunnel};

/// For how long nobody goes to a service that was silent. Another one leads before that is over.
const SHUNNED: Duration = Duration::from_secs(15);
/// A service that answered anything within this is there, whatever became of one connection. Who leads is told something
/// each five seconds; and a frozen one is found silent ten seconds after its last answer at the earliest.
const ANSWERED: Duration = Duration::from_secs(8);

/// The client. Cheap to clone; all clones go to the same service.
#[derive(Debug, Clone)]
pub struct Followed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    given: Vec<Endpoint>,
    /// What is shown to a service on another machine, and who that has to be.
    shown: Option<(Arc<ClientConfig>, Name)>,
    place: Mutex<Place>,
    /// The service of which somebody found last that it is silent.
    silent: watch::Sender<Option<Endpoint>>,
}

#[derive(Debug)]
struct Place {
    client: Client,
    /// Which of those that were given comes next.
    next: usize,
    /// The one that was silent last, and when.
    silent: Option<(Endpoint, Instant)>,
    /// The one that answered last, and when.
    answered: Option<(Endpoint, Instant)>,
}

impl Place {
    fn shuns(&self, endpoint: &Endpoint) -> bool {
        let silent = self.silent.as_ref();
        silent.is_some_and(|(silent, at)| silent == endpoint && at.elapsed() < SHUNNED)
    }

    fn has_answered(&self, endpoint: &Endpoint) -> bool {
        let answered = self.answered.as_ref();
        answered.is_some_and(|(answered, at)| answered == endpoint && at.elapsed() < ANSWERED)
    }
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
        let place = Mutex::new(Place { client, next, silent: None, answered: None });
        let silent = watch::Sender::default();
        Self(Arc::new(Inner { given, shown, place, silent }))
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
        let watch = |client: Client| async move {
            let lines = client.watch(path).await?;
            Ok((client, lines))
        };
        let (client, lines) = self.follow(watch).await?;
        let this = self.clone();
        let noted = lines.inspect(move |line| {
            if matches!(line, Err(CallError::TimedOut { .. })) {
                this.left_silent(client.endpoint());
            }
        });
        Ok(noted.boxed())
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
        let outcome = self.unless_silent(&asked, call(asked.clone())).await;
        let Some(leader) = leader(&outcome) else { return self.noted(&asked, outcome) };
        if leader == *asked.endpoint() || self.place().shuns(&leader) {
            return self.noted(&asked, outcome);
        }
        tracing::info!(%leader, "another control plane leads; going there");
        let leader = dial(leader, self.0.shown.as_ref());
        self.go_to(leader.clone(), asked.endpoint());
        let outcome = self.unless_silent(&leader, call(leader.clone())).await;
        self.noted(&leader, outcome)
    }

    /// Goes to the leader, as `told` says, which answers, and to which it goes back first: the leader may be among the
    /// others by another name.
    fn go_to(&self, leader: Client, told: &Endpoint) {
        let mut place = self.place();
        place.client = leader;
        if let Some(idx) = self.0.given.iter().position(|given| given == told) {
            place.next = idx;
        }
    }

    /// Makes a call, and gives it up once another finds that the service is silent.
    async fn unless_silent<T>(
        &self,
        asked: &Client,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let mut silent = self.0.silent.subscribe();
        let is_silent = async {
            loop {
                // Whoever sends lives as long as this does.
                silent.changed().await.expect("the sender is ours");
                if silent.borrow_and_update().as_ref() == Some(asked.endpoint()) {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            outcome = call => outcome,
            () = is_silent => Err(CallError::TimedOut { endpoint: asked.endpoint().clone() }),
        }
    }

    /// Goes on to the next service, and has others give up what they wait for from this one.
    fn left_silent(&self, endpoint: &Endpoint) {
        let nowhere_else = self.0.given.iter().all(|given| given == endpoint);
        if nowhere_else || self.place().has_answered(endpoint) {
            // It is a connection that is to be left.
            return self.leave(endpoint);
        }
        self.place().silent = Some((endpoint.clone(), Instant::now()));
        self.leave(endpoint);
        self.0.silent.send_replace(Some(endpoint.clone()));
    }

    /// Goes on to the next service when this one was of no use.
    fn noted<T>(&self, asked: &Client, outcome: Result<T, CallError>) -> Result<T, CallError> {
        match &outcome {
            Err(CallError::TimedOut { .. }) => self.left_silent(asked.endpoint()),
            Err(CallError::Unreachable { .. }) => {}
            _ => self.place().answered = Some((asked.endpoint().clone(), Instant::now())),
        }
        let is_of_no_use = outcome.as_ref().is_err_and(|error| match error {
            CallError::Unreachable { .. } => true,
            CallError::TimedOut { .. } => false,
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
        let (mut place, given) = (self.place(), &self.0.given);
        if place.client.endpoint() != asked {
            return;
        }
        // That one may be among them, or one may be given twice.
        let others = (0..given.len()).map(|more| (place.next + more) % given.len());
        let others: Vec<_> = others.filter(|idx| given[*idx] != *asked).collect();
        let next = others.iter().copied().find(|idx| !place.shuns(&given[*idx]));
        let next = match (next, others.first()) {
            (Some(next), _) => next,
            // It is better than one that is silent.
            (None, Some(_)) if !place.shuns(asked) => return,
            (None, Some(other)) => *other,
            (None, None) => place.next,
        };
        place.client = dial(given[next].clone(), self.0.shown.as_ref());
        place.next = (next + 1) % given.len();
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

    /// As one whose machine is frozen: it takes calls and answers none.
    fn hang(world: &Shared) -> CancellationToken {
        let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
        world.lock().unwrap().all.push(listener.endpoint().unwrap());
        let end = CancellationToken::new();
        let router = Router::new().fallback(std::future::pending::<()>);
        tokio::spawn(listener.serve(router, end.clone()));
        end
    }

    #[tokio::test]
    async fn what_waits_for_one_that_is_silent_goes_elsewhere() {
        let world = Shared::default();
        let _ends = [hang(&world), serve(&world)];
        let given = world.lock().unwrap().all.clone();
        world.lock().unwrap().leads = Some(1);
        let endpoints =
            Endpoints { first: given[0].clone(), rest: vec![given[0].clone(), given[1].clone()] };
        let followed = Followed::new(endpoints);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let followed = followed.clone();
                tokio::spawn(
                    async move { followed.call::<(), usize>(Method::GET, "/", None).await },
                )
            })
            .collect();
        while followed.0.silent.receiver_count() < waiting.len() {
            tokio::task::yield_now().await;
        }
        followed.left_silent(&given[1]);
        assert_eq!(followed.endpoint(), given[0], "it is another one that is silent");
        followed.left_silent(&given[0]);
        for call in waiting {
            let outcome = call.await.unwrap();
            assert!(matches!(outcome, Err(CallError::TimedOut { .. })), "{outcome:?}");
        }
        assert_eq!(followed.endpoint(), given[1], "the other one that is given is the same");
        assert_eq!(followed.call::<(), usize>(Method::GET, "/", None).await.unwrap(), 1);
        // Others take it for the leader still, and nobody waits for it again.
        world.lock().unwrap().leads = Some(0);
        for _ in 0..3 {
            assert!(followed.call::<(), usize>(Method::GET, "/", None).await.is_err());
            assert_eq!(followed.endpoint(), given[1]);
        }
        world.lock().unwrap().leads = Some(1);
        assert_eq!(followed.call::<(), usize>(Method::GET, "/", None).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn one_connection_that_is_silent_does_not_make_a_service_so() {
        let world = Shared::default();
        let _ends = [serve(&world), serve(&world)];
        let given = world.lock().unwrap().all.clone();
        world.lock().unwrap().leads = Some(0);
        let endpoints = Endpoints { first: given[1].clone(), rest: vec![given[0].clone()] };
        let followed = Followed::new(endpoints);
        let ask = || followed.call::<(), usize>(Method::GET, "/", None);
        assert_eq!(ask().await.unwrap(), 0);
        followed.left_silent(&given[0]);
        assert_eq!(
            followed.endpoint(),
            given[1],
            "by a connection of its own, and by who answered before"
        );
        assert_eq!(ask().await.unwrap(), 0, "it leads, and is gone back to at once");
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
