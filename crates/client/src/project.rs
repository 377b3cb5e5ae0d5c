//! What may be done in a project.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderValue, Method};
use longshore_api::links::{
    ArchiveRequest, AttachRequest, EXEC_PROTOCOL, ExecRequest, LogLine, MAX_EXEC_MESSAGE, TAR,
};
use longshore_api::v1::{
    AppExplanation, AppLocationView, AppView, DeployRequest, DeployResponse, Explanation,
    InstanceView, PlanView, PrewarmRequest, PrewarmStatus, PrewarmView, ProjectView, ReleaseView,
    RollbackRequest, ScaleRequest, SecretRequest, SecretView, UsageView,
};
use longshore_link::{ByteStream, CallError, Client, EventStream, LineStream, Tunnel, WebSocket};
use longshore_types::{
    AppName, Digest, Generation, InstanceId, LocationName, Port, ProjectName, ReleaseNumber,
    SecretName, SecretValue, Timestamp,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::change::change;

/// A project. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Project {
    link: Client,
    name: ProjectName,
}

/// Which instances are listed; all when nothing is said.
#[derive(Debug, Clone, Default)]
pub struct InstanceFilter {
    /// Only those of this app.
    pub app: Option<AppName>,
    /// Only those at this location.
    pub location: Option<LocationName>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Only those after this one.
    pub after: Option<InstanceId>,
}

/// Which part of a log is read.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// Only lines from then on.
    pub since: Timestamp,
    /// Whether to go on with what is written from now on.
    pub follow: bool,
}

/// What is watched of a project; all when nothing is said.
#[derive(Debug, Clone, Default)]
pub struct WatchScope {
    /// Only this app and its instances.
    pub app: Option<AppName>,
    /// Whether instances are left out.
    pub without_instances: bool,
}

/// Puts a path and the parameters together that are given.
struct Query(String);

impl Query {
    fn with(mut self, name: &str, value: Option<impl Display>) -> Self {
        if let Some(value) = value {
            let joint = if self.0.contains('?') { '&' } else { '?' };
            // Names, ids and numbers have no character that means something in a query.
            let _ = write!(self.0, "{joint}{name}={value}"); // Writing to a String cannot fail.
        }
        self
    }
}

impl Project {
    pub(crate) fn new(link: Client, name: ProjectName) -> Self {
        Self { link, name }
    }

    /// Its name.
    pub fn name(&self) -> &ProjectName {
        &self.name
    }

    /// The calls below the methods, for what these do not have.
    pub fn link(&self) -> &Client {
        &self.link
    }

    /// The path of something below the project.
    pub fn path(&self, rest: impl Display) -> String {
        format!("/v1/projects/{}/{rest}", self.name)
    }

    /// The same project, whose apps are changed only while they have this generation.
    #[must_use]
    pub fn expecting(&self, generation: Generation) -> Self {
        let tag = HeaderValue::from_str(&format!("\"{generation}\""));
        let tag = tag.expect("digits in quotes are a header value");
        Self { link: self.link.clone().with_header("if-match", tag), name: self.name.clone() }
    }

    async fn get<T: DeserializeOwned>(&self, rest: impl Display) -> Result<T, CallError> {
        self.link.get(&self.path(rest)).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        rest: impl Display,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CallError> {
        change(&self.link, Method::POST, &self.path(rest), body).await
    }

    async fn put<T: DeserializeOwned>(
        &self,
        rest: impl Display,
        body: &(impl Serialize + Sync),
    ) -> Result<T, CallError> {
        change(&self.link, Method::PUT, &self.path(rest), Some(body)).await
    }

    async fn delete(&self, rest: impl Display) -> Result<(), CallError> {
        change(&self.link, Method::DELETE, &self.path(rest), None::<&()>).await
    }

    /// The images that should be on nodes beforehand.
    pub async fn prewarms(&self) -> Result<Vec<PrewarmView>, CallError> {
        self.get("prewarms").await
    }

    /// Brings an image to nodes before anything starts from it.
    pub async fn prewarm(&self, request: &PrewarmRequest) -> Result<PrewarmView, CallError> {
        self.post("prewarms", Some(request)).await
    }

    /// How far it is on each node that should have it.
    pub async fn prewarm_status(&self, image: &Digest) -> Result<PrewarmStatus, CallError> {
        self.get(format!("prewarms/{image}")).await
    }

    /// Needs it on nodes no longer.
    pub async fn remove_prewarm(&self, image: &Digest) -> Result<(), CallError> {
        self.delete(format!("prewarms/{image}")).await
    }

    /// Its apps.
    pub async fn apps(&self) -> Result<Vec<AppView>, CallError> {
        self.get("apps").await
    }

    /// One of them.
    pub async fn app(&self, app: &AppName) -> Result<AppView, CallError> {
        self.get(format!("apps/{app}")).await
    }

    /// Makes a manifest the release that should run.
    pub async fn deploy(
        &self,
        app: &AppName,
        manifest: Value,
    ) -> Result<DeployResponse, CallError> {
        self.put(format!("apps/{app}"), &DeployRequest { manifest }).await
    }

    /// What a deploy would change.
    pub async fn plan(&self, app: &AppName, manifest: Value) -> Result<PlanView, CallError> {
        let path = self.path(format_args!("apps/{app}/plan"));
        self.link.call(Method::POST, &path, Some(&DeployRequest { manifest })).await
    }

    /// How many instances should run.
    pub async fn scale(&self, app: &AppName, count: u32) -> Result<AppView, CallError> {
        self.post(format!("apps/{app}/scale"), Some(&ScaleRequest { count })).await
    }

    /// What each location has of an app, or should have.
    pub async fn app_locations(&self, app: &AppName) -> Result<Vec<AppLocationView>, CallError> {
        self.get(format_args!("apps/{app}/locations")).await
    }

    /// The releases of an app that are kept, oldest first.
    pub async fn releases(&self, app: &AppName) -> Result<Vec<ReleaseView>, CallError> {
        self.get(format!("apps/{app}/releases")).await
    }

    /// Makes an earlier release the one that should run; the one before when none is named.
    pub async fn rollback(
        &self,
        app: &AppName,
        release: Option<ReleaseNumber>,
    ) -> Result<DeployResponse, CallError> {
        self.post(format!("apps/{app}/rollback"), Some(&RollbackRequest { release })).await
    }

    /// Lets the release whose canaries run take over.
    pub async fn promote(&self, app: &AppName) -> Result<DeployResponse, CallError> {
        self.post(format!("apps/{app}/promote"), None::<&()>).await
    }

    /// Removes an app with all its instances and releases.
    pub async fn remove(&self, app: &AppName) -> Result<(), CallError> {
        self.delete(format!("apps/{app}")).await
    }

    /// Its instances, by their ids.
    pub async fn instances(&self, filter: &InstanceFilter) -> Result<Vec<InstanceView>, CallError> {
        let InstanceFilter { app, location, limit, after } = filter;
        let path = Query("instances".to_owned())
            .with("app", app.as_ref())
            .with("location", location.as_ref())
            .with("limit", *limit)
            .with("after", after.as_ref());
        self.get(path.0).await
    }

    /// One of them.
    pub async fn instance(&self, id: &InstanceId) -> Result<InstanceView, CallError> {
        self.get(format!("instances/{id}")).await
    }

    /// How much of an app runs, and why the rest does not.
    pub async fn explain_app(&self, app: &AppName) -> Result<AppExplanation, CallError> {
        self.get(format!("apps/{app}/explain")).await
    }

    /// Why an instance is where it is.
    pub async fn explain(&self, id: &InstanceId) -> Result<Explanation, CallError> {
        self.get(format!("instances/{id}/explain")).await
    }

    /// Stops an instance; another takes its place.
    pub async fn stop(&self, id: &InstanceId) -> Result<(), CallError> {
        self.post(format!("instances/{id}/stop"), None::<&()>).await
    }

    /// What an instance wrote.
    pub async fn logs(
        &self,
        id: &InstanceId,
        options: &LogOptions,
    ) -> Result<LineStream<LogLine>, CallError> {
        let LogOptions { tail, since, follow } = options;
        let path = Query(format!("instances/{id}/logs?follow={follow}&since={}", since.0))
            .with("tail", *tail);
        self.link.watch(&self.path(path.0)).await
    }

    /// Runs a command in an instance; what is said then is at [`longshore_api::links::Channel`].
    pub async fn exec(
        &self,
        id: &InstanceId,
        request: &ExecRequest,
    ) -> Result<WebSocket, CallError> {
        let path = self.path(format_args!("instances/{id}/exec?{}", request.to_query()));
        self.link().websocket(&path, EXEC_PROTOCOL, MAX_EXEC_MESSAGE + 1).await
    }

    /// Attaches to the first process of an instance that is made for it, as [`Project::exec`] runs a
    /// command.
    pub async fn attach(
        &self,
        id: &InstanceId,
        request: &AttachRequest,
    ) -> Result<WebSocket, CallError> {
        let path = self.path(format_args!("instances/{id}/attach?{}", request.to_query()));
        self.link().websocket(&path, EXEC_PROTOCOL, MAX_EXEC_MESSAGE + 1).await
    }

    /// A connection to a port of an instance.
    pub async fn connect(&self, id: &InstanceId, port: Port) -> Result<Tunnel, CallError> {
        let path = self.path(format_args!("instances/{id}/port-forward?port={port}"));
        self.link().tunnel(&path).await
    }

    /// Files of an instance, as an archive that ends with an error when it is not whole.
    pub async fn read_files(
        &self,
        id: &InstanceId,
        request: &ArchiveRequest,
    ) -> Result<ByteStream, CallError> {
        let path = self.path(format_args!("instances/{id}/archive?{}", request.to_query()));
        self.link().download(&path).await
    }

    /// Unpacks an archive in an instance, as it comes.
    pub async fn write_files(
        &self,
        id: &InstanceId,
        request: &ArchiveRequest,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), CallError> {
        let path = self.path(format_args!("instances/{id}/archive?{}", request.to_query()));
        self.link().upload(Method::PUT, &path, TAR, archive).await.map(drop)
    }

    /// What its instances use, of one app or one instance when named.
    pub async fn usage(
        &self,
        app: Option<&AppName>,
        instance: Option<&InstanceId>,
    ) -> Result<Vec<UsageView>, CallError> {
        let path = Query("usage".to_owned()).with("app", app).with("instance", instance);
        self.get(path.0).await
    }

    /// Its secrets, without their values.
    pub async fn secrets(&self) -> Result<Vec<SecretView>, CallError> {
        self.get("secrets").await
    }

    /// Keeps a value as the next version of a secret.
    pub async fn set_secret(
        &self,
        name: &SecretName,
        value: SecretValue,
    ) -> Result<SecretView, CallError> {
        self.put(format!("secrets/{name}"), &SecretRequest { value }).await
    }

    /// Removes a secret that no release needs.
    pub async fn remove_secret(&self, name: &SecretName) -> Result<(), CallError> {
        self.delete(format!("secrets/{name}")).await
    }

    /// The state, again whole at each change.
    pub async fn watch(&self, scope: &WatchScope) -> Result<LineStream<ProjectView>, CallError> {
        self.link.watch(&self.watch_path(scope)).await
    }

    /// The state, then what changes, as events; after the one with that id when it is still known.
    /// `state` carries a [`ProjectView`], `change` a [`longshore_api::v1::ProjectChange`].
    pub async fn follow(
        &self,
        scope: &WatchScope,
        after: Option<&str>,
    ) -> Result<EventStream, CallError> {
        self.link.events(&self.watch_path(scope), after).await
    }

    fn watch_path(&self, scope: &WatchScope) -> String {
        let WatchScope { app, without_instances } = scope;
        let path = Query("watch".to_owned())
            .with("app", app.as_ref())
            .with("instances", without_instances.then_some(false));
        self.path(path.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_given_are_put_together() {
        let path = Query("x".to_owned()).with("a", None::<u32>).with("b", Some(1));
        assert_eq!(path.with("c", Some("d")).0, "x?b=1&c=d");
    }
}
