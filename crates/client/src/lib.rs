//! The REST API of a platform as methods with types: what the CLI uses, and any other program may.
//!
//! - [`Client`]: a platform, with the token to show. [`Project`]: one of its projects.
//! - A change gets an idempotency key of its own, and is sent again when the connection broke: it is made
//!   once, whether the first one arrived or not. [`Project::expecting`] makes it only of what was seen.
//! - Watches and logs are streams that end with an error when the platform falls silent.
//!
//! It must not know how the platform does anything; what it says is in `longshore_api::v1`.
//! Test: `cargo nextest run -p longshore-client`, and the service tests of `longshore-global`.

#![deny(missing_docs)]

mod change;
mod project;

use http::Method;
use longshore_api::v1::{
    AppMoveView, CallerView, CordonRequest, EventView, HealthView, JoinTokenCreated,
    JoinTokenRequest, LocationView, Move, RegistryView, SecretKeyView, TokenCreated, TokenRequest,
    TokenView,
};
use longshore_link::{ByteStream, CallError, Endpoint, EventStream};
use longshore_types::{AppName, Cordon, LocationName, NodeImage, NodeName, ProjectName};

use change::change;
pub use project::{InstanceFilter, LogOptions, Project, WatchScope};

/// A platform. Cheap to clone; connections are kept and shared.
#[derive(Debug, Clone)]
pub struct Client {
    link: longshore_link::Client,
}

impl Client {
    /// The platform whose API is at `endpoint`, called with this token. Connects when first used.
    pub fn new(endpoint: Endpoint, token: &str) -> Self {
        Self { link: longshore_link::Client::new(endpoint).with_token(token) }
    }

    /// The same over a connection that is made in another way, such as by TLS.
    pub fn over(link: longshore_link::Client, token: &str) -> Self {
        Self { link: link.with_token(token) }
    }

    /// The calls below the methods, for what these do not have.
    pub fn link(&self) -> &longshore_link::Client {
        &self.link
    }

    /// One of its projects.
    pub fn project(&self, name: &ProjectName) -> Project {
        Project::new(self.link.clone(), name.clone())
    }

    /// Whether it answers, and where its registry and ingress are.
    pub async fn health(&self) -> Result<HealthView, CallError> {
        self.link.get("/v1/health").await
    }

    /// Its locations and their nodes.
    pub async fn locations(&self) -> Result<Vec<LocationView>, CallError> {
        self.link.get("/v1/locations").await
    }

    /// One of its locations.
    pub async fn location(&self, name: &LocationName) -> Result<LocationView, CallError> {
        self.link.get(&format!("/v1/locations/{name}")).await
    }

    /// Places nothing new at a location, or on one of its nodes; where it `drains`, what is there moves away.
    pub async fn cordon(&self, place: &Place, drains: bool) -> Result<Cordon, CallError> {
        let request = CordonRequest { drains };
        change(&self.link, Method::PUT, &place.path("/cordon"), Some(&request)).await
    }

    /// Lets new instances come there again.
    pub async fn uncordon(&self, place: &Place) -> Result<(), CallError> {
        change(&self.link, Method::DELETE, &place.path("/cordon"), None::<&()>).await
    }

    /// What draining a location would move, and where.
    pub async fn preview_location_drain(
        &self,
        location: &LocationName,
    ) -> Result<Vec<AppMoveView>, CallError> {
        self.link.get(&Place::Location(location.clone()).path("/drain")).await
    }

    /// What draining a node would move, and where.
    pub async fn preview_node_drain(
        &self,
        location: &LocationName,
        node: &NodeName,
    ) -> Result<Vec<Move>, CallError> {
        self.link.get(&Place::Node(location.clone(), node.clone()).path("/drain")).await
    }

    /// What removing a location would start elsewhere.
    pub async fn preview_location_removal(
        &self,
        location: &LocationName,
    ) -> Result<Vec<AppMoveView>, CallError> {
        self.link.get(&Place::Location(location.clone()).path("/removal")).await
    }

    /// What removing a node would start on others.
    pub async fn preview_node_removal(
        &self,
        location: &LocationName,
        node: &NodeName,
    ) -> Result<Vec<Move>, CallError> {
        self.link.get(&Place::Node(location.clone(), node.clone()).path("/removal")).await
    }

    /// The images of a node, with what keeps each.
    pub async fn node_images(
        &self,
        location: &LocationName,
        node: &NodeName,
    ) -> Result<Vec<NodeImage>, CallError> {
        self.link.get(&Place::Node(location.clone(), node.clone()).path("/images")).await
    }

    /// Forgets a node that is drained or lost, which is refused from then on.
    pub async fn remove_node(
        &self,
        location: &LocationName,
        node: &NodeName,
    ) -> Result<(), CallError> {
        let path = Place::Node(location.clone(), node.clone()).path("");
        change(&self.link, Method::DELETE, &path, None::<&()>).await
    }

    /// Forgets a location that joined and is empty or silent, and refuses it from then on.
    pub async fn remove_location(&self, location: &LocationName) -> Result<(), CallError> {
        let path = Place::Location(location.clone()).path("");
        change(&self.link, Method::DELETE, &path, None::<&()>).await
    }

    /// Where its registry is, and whether that answers.
    pub async fn registry(&self) -> Result<RegistryView, CallError> {
        self.link.get("/v1/registry").await
    }

    /// Forgets the registry that joined, which is refused from then on.
    pub async fn remove_registry(&self) -> Result<(), CallError> {
        change(&self.link, Method::DELETE, "/v1/registry", None::<&()>).await
    }

    /// Whose token this is, and where it may look.
    pub async fn whoami(&self) -> Result<CallerView, CallError> {
        self.link.get("/v1/whoami").await
    }

    /// What the control plane keeps, as a file for `longshore store restore`.
    pub async fn back_up_store(&self) -> Result<ByteStream, CallError> {
        self.link.download("/v1/store/backup").await
    }

    /// What was changed, the newest last; of one project or of all that the token may look at.
    pub async fn events(
        &self,
        project: Option<&ProjectName>,
        limit: u32,
    ) -> Result<Vec<EventView>, CallError> {
        self.link.get(&events_path(project, limit)).await
    }

    /// What is changed from now on, or after the event with that id. `event` carries an [`EventView`],
    /// `missed` says that older ones were forgotten.
    pub async fn follow_events(
        &self,
        project: Option<&ProjectName>,
        after: Option<&str>,
    ) -> Result<EventStream, CallError> {
        self.link.events(&events_path(project, 1), after).await
    }

    /// Makes what lets one machine join a location, within an hour.
    pub async fn create_join_token(
        &self,
        request: &JoinTokenRequest,
    ) -> Result<JoinTokenCreated, CallError> {
        change(&self.link, Method::POST, "/v1/join-tokens", Some(request)).await
    }

    /// The tokens that this one may administer.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, CallError> {
        self.link.get("/v1/tokens").await
    }

    /// Makes a token, whose text is in the answer and nowhere else.
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenCreated, CallError> {
        change(&self.link, Method::POST, "/v1/tokens", Some(request)).await
    }

    /// Removes a token; it opens nothing from then on.
    pub async fn remove_token(&self, name: &AppName) -> Result<(), CallError> {
        change(&self.link, Method::DELETE, &format!("/v1/tokens/{name}"), None::<&()>).await
    }

    /// Seals all secrets with a new key.
    pub async fn rotate_secret_key(&self) -> Result<SecretKeyView, CallError> {
        change(&self.link, Method::POST, "/v1/secrets/rotate-key", None::<&()>).await
    }
}

/// What an operator closes to new instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A whole location.
    Location(LocationName),
    /// One node of a location.
    Node(LocationName, NodeName),
}

impl Place {
    /// The location, and the node where it is one.
    pub fn names(&self) -> (&LocationName, Option<&NodeName>) {
        match self {
            Self::Location(location) => (location, None),
            Self::Node(location, node) => (location, Some(node)),
        }
    }

    fn path(&self, below: &str) -> String {
        match self {
            Self::Location(location) => format!("/v1/locations/{location}{below}"),
            Self::Node(location, node) => format!("/v1/locations/{location}/nodes/{node}{below}"),
        }
    }
}

fn events_path(project: Option<&ProjectName>, limit: u32) -> String {
    let project = project.map(|project| format!("&project={project}")).unwrap_or_default();
    format!("/v1/events?limit={limit}{project}")
}
