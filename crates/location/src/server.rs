//! What nodes, ingresses and the global plane call.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, Path, Query, RawPathParams, RawQuery, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use futures_util::stream::{self, StreamExt};
use http::Method;
use longshore_api::links::{
    Assigned, AssignmentSet, AssignmentsQuery, Counted, HoldsRequest, ImageHolds, ImageNeighbours,
    InstanceSecretsRequest, MeasuredWays, Move, NodeReport, ReportTaken, RouteAck, RoutingTable,
    SecretValues, StopInstance, TAR, UsageRequest, Vouched,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{
    Body, CallError, MAX_OF_STRANGERS, Refusal, Service, Upgrade, chain, json_lines, only, relay,
    relay_whole, watch_lines,
};
use longshore_trust::{CertificateRequest, JoinRequest, Name, Peer, Signed};
use longshore_types::{InstanceId, LocationName, NodeImage, NodeName};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::demand::Demand;
use crate::elsewhere::Others;
use crate::gates::Gates;
use crate::images::{Images, Wanted};
use crate::keeper::{Event, Handle, Heard};
use crate::neighbours::{Neighbours, OfLayer};
use crate::secrets::{Secrets, SecretsError};
use crate::trust::Trust;

/// What a location answers with; the handlers share it.
pub struct Server {
    pub location: LocationName,
    pub handle: Handle,
    pub secrets: Arc<Secrets>,
    pub trust: Arc<Trust>,
    pub others: Arc<Others>,
    pub demand: Arc<Demand>,
    pub images: Arc<Images>,
    pub gates: Arc<Gates>,
    pub neighbours: Neighbours,
    /// Where nodes of other machines reach its ingresses.
    pub ingresses: Vec<String>,
    pub service: Service,
}

type Shared = State<Arc<Server>>;

/// Everything, each part for those alone whom it is for: who that is, is decided here and nowhere else.
pub fn router(server: Server) -> Router {
    let server = Arc::new(server);
    let nodes = Router::new()
        .route("/link/nodes/{node}/assignments", get(assignments))
        .route("/link/nodes/{node}/report", post(report))
        .route("/link/nodes/{node}/report/changes", post(report))
        .route("/link/nodes/{node}/secrets", post(instance_secrets))
        .route("/link/nodes/{node}/certificate", post(renew_node))
        .route("/link/nodes/{node}/reverse", get(reverse))
        .route("/link/nodes/{node}/images/manifest", get(manifest))
        .route("/link/nodes/{node}/images/blob", get(blob))
        .route("/link/nodes/{node}/images/converted", get(converted))
        .route("/link/nodes/{node}/images/holds", post(image_holds))
        .route("/link/nodes/{node}/images/neighbours", get(image_neighbours))
        .route("/link/nodes/{node}/neighbours/{other}", get(vouch))
        .route("/link/nodes/{node}/prewarm", get(prewarm))
        .route_layer(from_fn_with_state(Arc::clone(&server), only_that_node));
    let ingresses = Router::new()
        .route("/link/routes", get(routes))
        .route("/link/routes/ack", post(ack))
        .route("/link/elsewhere", get(elsewhere))
        .route("/link/elsewhere/measured", post(measured))
        .route("/link/demand", post(demand_counted))
        .route("/link/ingress/certificate", post(name_ingress))
        .route(
            "/link/ingress/nodes/{node}/instances/{instance}/port-forward",
            upgraded("port-forward"),
        )
        .route_layer(from_fn_with_state(Arc::clone(&server), only_ingresses));
    let global = Router::new()
        .route("/gate/stop", post(stop))
        .route("/gate/nodes/{node}/instances/{instance}/logs", get(logs))
        .route("/gate/nodes/{node}/instances/{instance}/exec", upgraded("exec"))
        .route("/gate/nodes/{node}/instances/{instance}/attach", upgraded("attach"))
        .route("/gate/nodes/{node}/instances/{instance}/port-forward", upgraded("port-forward"))
        .route("/gate/nodes/{node}/instances/{instance}/archive", get(pack).put(unpack))
        .route("/gate/nodes/{node}/usage", post(usage))
        .route("/gate/nodes/{node}/drain", get(preview_drain))
        .route("/gate/nodes/{node}/images", get(node_images))
        .route_layer(from_fn_with_state(Arc::clone(&server), only_global));
    Router::new()
        .route("/join", post(join).layer(DefaultBodyLimit::max(MAX_OF_STRANGERS)))
        .route("/renew/{node}", post(renew_expired).layer(DefaultBodyLimit::max(MAX_OF_STRANGERS)))
        .merge(nodes)
        .merge(ingresses)
        .merge(global)
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(server)
}

/// A node speaks for itself alone.
async fn only_that_node(
    State(server): Shared,
    params: RawPathParams,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let named = params.iter().find(|(name, _)| *name == "node");
    let node = named.and_then(|(_, node)| node.parse().ok());
    let is_node = node.as_ref().is_some_and(|node| server.trust.is_node(&peer, node));
    // One that was removed is told to end what it has, and nothing else.
    if let Some(node) = node.filter(|_| is_node)
        && !request.uri().path().ends_with("/assignments")
        && let Err(refusal) = refuse_removed(&server, &node)
    {
        return refusal.into_response();
    }
    only(is_node, peer, request, next).await
}

/// Has nothing to do with a node that an operator removed.
fn refuse_removed(server: &Server, node: &NodeName) -> Result<(), Refusal> {
    let cordons = server.handle.cordons.borrow();
    let Some(cordon) = cordons.get(node).filter(|cordon| cordon.removed) else { return Ok(()) };
    let detail = format!(
        "node {node} was removed by an operator at {}; `longshore uncordon {node} --location {}` \
         lets it in again",
        cordon.since, server.location
    );
    Err(Problem::new(ProblemCode::Forbidden, detail).into())
}

async fn only_ingresses(
    State(server): Shared,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let ingress = Name::Ingress(server.location.clone());
    only(peer == Peer::Local || peer.name() == Some(&ingress), peer, request, next).await
}

async fn only_global(
    State(_): Shared,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    only(peer == Peer::Local || peer.name() == Some(&Name::Global), peer, request, next).await
}

async fn join(
    State(server): Shared,
    Body(request): Body<JoinRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    refuse_removed(&server, &request.node)?;
    let known = server.handle.assignments.of(&request.node).is_some();
    server.trust.join(request, known).await.map(axum::Json)
}

async fn renew_node(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    server.trust.renew_node(node, &key).map(axum::Json)
}

/// The same for a node whose certificate has expired, so that it shows none. Nothing else is asked for but its
/// key: what is said of that is of use to who has the other half of it, and to nobody else.
async fn renew_expired(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    refuse_removed(&server, &node)?;
    server.trust.renew_node(node, &key).map(axum::Json)
}

async fn name_ingress(
    State(server): Shared,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    server.trust.name_ingress(&key).map(axum::Json)
}

async fn manifest(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    server.images.manifest(&node, &wanted).await
}

async fn converted(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    server.images.converted(&node, &wanted).await
}

async fn blob(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    server.images.blob(&node, &wanted, server.service.shutdown()).await
}

/// Who else has or pulls an image that this node pulls.
async fn image_neighbours(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Query(wanted): Query<Wanted>,
) -> Result<axum::Json<ImageNeighbours>, Refusal> {
    server.neighbours.of_image(&node, &wanted).await.map(axum::Json)
}

/// Says whether another node may have a layer, for which it asked this one.
async fn vouch(
    State(server): Shared,
    Path((_, other)): Path<(NodeName, NodeName)>,
    Query(of): Query<OfLayer>,
) -> Result<axum::Json<Vouched>, Refusal> {
    server.neighbours.vouch(&other, &of).await.map(axum::Json)
}

async fn assignments(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Query(AssignmentsQuery { changes }): Query<AssignmentsQuery>,
) -> Response {
    let mut last: Option<Arc<Assigned>> = None;
    // One of this machine is dialled.
    let ingresses = server.trust.joined(&node).map(|_| server.ingresses.clone());
    let ingresses = ingresses.unwrap_or_default();
    let told = server.handle.assignments.follow(&node);
    let sets = watch_lines(told).filter_map(move |assigned| {
        // A node that is not known yet is told nothing: an empty set would end its instances.
        let next = assigned.as_ref().map(|assigned| match last.as_ref().filter(|_| changes) {
            Some(last) => assigned.since(last),
            None => assigned.whole(),
        });
        last = assigned.or_else(|| last.take());
        let ingresses = ingresses.clone();
        std::future::ready(next.map(|next| AssignmentSet { ingresses, ..next }))
    });
    // A node that is removed is told nothing more from that moment on.
    let sets = sets.take_until(server.trust.clone().removed(node));
    json_lines(sets, server.service.shutdown())
}

async fn tell(server: &Server, event: Event) -> Result<(), Refusal> {
    Ok(server.handle.events.send(event).await.map_err(|_| ending())?)
}

fn ending() -> Problem {
    Problem::new(ProblemCode::Unavailable, "the location is shutting down")
}

async fn report(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(report): Body<NodeReport>,
) -> Result<axum::Json<Option<ReportTaken>>, Refusal> {
    if report.node != node {
        let detail = format!("a report of {} came over the link of {node}", report.node);
        return Err(Problem::new(ProblemCode::InvalidRequest, detail).into());
    }
    let reach = server.gates.reported(&report)?;
    // One that says all each time knows of no answer.
    let has_number = report.number > 0;
    let (sender, heard) = oneshot::channel();
    tell(&server, Event::Report(Box::new(report), reach, sender)).await?;
    match heard.await {
        Ok(Heard::Stored(taken)) => Ok(axum::Json(has_number.then_some(taken))),
        Ok(Heard::Unknown) => Ok(axum::Json(Some(ReportTaken { number: None }))),
        Ok(Heard::NoRoom) => {
            let detail = "the location has no room to keep what this node took over";
            Err(Problem::new(ProblemCode::Unavailable, detail).into())
        }
        Err(_) => Err(ending().into()),
    }
}

/// A node opens a connection to be called over.
async fn reverse(
    State(server): Shared,
    Path(node): Path<NodeName>,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    server.gates.accept(&node, upgrade)
}

/// The secrets of an instance that this node was given, and of no other.
async fn instance_secrets(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(request): Body<InstanceSecretsRequest>,
) -> Result<axum::Json<SecretValues>, Refusal> {
    let release = server.handle.release_of(&node, &request.instance).ok_or_else(|| {
        let detail = format!("{} is not an instance of node {node}", request.instance);
        Problem::new(ProblemCode::Forbidden, detail)
    })?;
    match server.secrets.of(&release).await {
        Ok(values) => Ok(axum::Json(SecretValues { values })),
        Err(SecretsError::Global(CallError::Refused(problem))) => Err(problem.into()),
        Err(error) => {
            let detail = format!("the secrets cannot be had now: {}", chain(&error));
            Err(Problem::new(ProblemCode::Unavailable, detail).into())
        }
    }
}

/// The table, and the nodes that may open connections to whoever routes by it.
async fn routes(State(server): Shared) -> Response {
    let (tables, joined) = (server.handle.routes.clone(), server.trust.watch_joined());
    let shutdown = server.service.shutdown();
    let state = (server, tables, joined, None);
    let tables = stream::unfold(state, |(server, mut tables, mut joined, mut last)| async move {
        loop {
            // Before they are read: what changes after that is seen again.
            joined.mark_unchanged();
            let nodes = server.trust.node_keys();
            let table = Arc::clone(&tables.borrow_and_update());
            // A table is another one when its revision is.
            if let Some(table) = table.as_ref() {
                let now = (table.revision, nodes);
                if last.as_ref() != Some(&now) {
                    let told = RoutingTable { nodes: now.1.clone(), ..table.clone() };
                    last = Some(now);
                    return Some((told, (server, tables, joined, last)));
                }
            }
            let changed = tokio::select! {
                changed = tables.changed() => changed,
                changed = joined.changed() => changed,
            };
            // An error means that the location ends.
            changed.ok()?;
        }
    });
    json_lines(tables, shutdown)
}

async fn elsewhere(State(server): Shared) -> Response {
    server.others.lines(server.service.shutdown())
}

async fn measured(State(server): Shared, Body(ways): Body<MeasuredWays>) -> axum::Json<()> {
    server.others.measured(ways);
    axum::Json(())
}

async fn demand_counted(State(server): Shared, Body(counted): Body<Counted>) -> axum::Json<()> {
    server.demand.note(counted, Instant::now());
    axum::Json(())
}

async fn ack(State(server): Shared, Body(ack): Body<RouteAck>) -> Result<axum::Json<()>, Refusal> {
    tell(&server, Event::Ack(ack)).await.map(axum::Json)
}

async fn stop(
    State(server): Shared,
    Body(order): Body<StopInstance>,
) -> Result<axum::Json<()>, Refusal> {
    let (sender, answer) = oneshot::channel();
    tell(&server, Event::Stop(order.instance.clone(), sender)).await?;
    match answer.await {
        Ok(true) => Ok(axum::Json(())),
        Ok(false) => Err(Problem::not_found("instance", &order.instance).into()),
        Err(_) => Err(ending().into()),
    }
}

/// What draining a node would do.
async fn preview_drain(
    State(server): Shared,
    Path(node): Path<NodeName>,
) -> Result<axum::Json<Vec<Move>>, Refusal> {
    let (sender, answer) = oneshot::channel();
    tell(&server, Event::PreviewDrain(node.clone(), sender)).await?;
    match answer.await {
        Ok(Some(moves)) => Ok(axum::Json(moves)),
        Ok(None) => Err(Problem::not_found("node", &node).into()),
        Err(_) => Err(ending().into()),
    }
}

/// The images that a node should have beforehand, again at each change.
async fn prewarm(State(server): Shared, Path(node): Path<NodeName>) -> Response {
    let orders = Arc::clone(&server.images.prewarm).orders_of(node.clone());
    // A node that is removed is told nothing more from that moment on.
    let orders = orders.take_until(server.trust.clone().removed(node));
    json_lines(orders, server.service.shutdown())
}

/// What keeps images on a node that is about to make room.
async fn image_holds(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(request): Body<HoldsRequest>,
) -> Result<axum::Json<ImageHolds>, Refusal> {
    let mut told = server.images.holds(node, request.images).await?;
    // A node is told whether, and not for whom.
    told.holds.values_mut().flatten().for_each(|hold| hold.by.clear());
    Ok(axum::Json(told))
}

/// The images of a node, with what keeps each.
async fn node_images(
    State(server): Shared,
    Path(node): Path<NodeName>,
) -> Result<axum::Json<Vec<NodeImage>>, Refusal> {
    let gate = server.gates.client(&node)?;
    let images = gate.call::<(), Vec<NodeImage>>(Method::GET, "/images", None).await;
    let images = images.map_err(|error| match error {
        CallError::Status { status: 404, .. } => {
            let detail = format!("node {node} is of an earlier release, which does not tell");
            Problem::new(ProblemCode::Unavailable, detail).into()
        }
        error => unreachable(&node, error),
    })?;
    server.images.with_holds(node, images).await.map(axum::Json)
}

/// Passes a request on to a node, and its answer back.
async fn ask<T: Serialize + Sync>(
    server: &Server,
    node: &NodeName,
    method: Method,
    path: &str,
    body: Option<&T>,
) -> Result<Response, Refusal> {
    match server.gates.client(node)?.send(method, path, body).await {
        Ok(answer) => Ok(relay(answer, server.service.shutdown())),
        Err(error) => Err(unreachable(node, error)),
    }
}

/// What a node said instead of an answer, or that it said nothing.
fn unreachable(node: &NodeName, error: CallError) -> Refusal {
    if let CallError::Refused(problem) = error {
        return problem.into();
    }
    tracing::warn!(%node, error = &error as &dyn std::error::Error, "cannot ask a node");
    let detail = format!("node {node} cannot be reached now; try again");
    Problem::new(ProblemCode::Unavailable, detail).into()
}

/// The path of something of an instance on its node, with the query as it came.
fn below(instance: &InstanceId, what: &str, query: Option<String>) -> String {
    format!("/instances/{instance}/{what}?{}", query.unwrap_or_default())
}

async fn logs(
    State(server): Shared,
    Path((node, instance)): Path<(NodeName, InstanceId)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let path = below(&instance, "logs", query);
    ask(&server, &node, Method::GET, &path, None::<&()>).await
}

/// Asks a node for an upgrade of something of an instance, and passes the bytes on.
fn upgraded(what: &'static str) -> MethodRouter<Arc<Server>> {
    get(
        move |State(server): Shared,
              Path((node, instance)): Path<(NodeName, InstanceId)>,
              RawQuery(query): RawQuery,
              upgrade: Upgrade| async move {
            let path = below(&instance, what, query);
            let answer =
                server.gates.client(&node)?.relay_upgrade(&path, upgrade, &server.service).await;
            answer.map_err(|error| unreachable(&node, error))
        },
    )
}

async fn pack(
    State(server): Shared,
    Path((node, instance)): Path<(NodeName, InstanceId)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let path = below(&instance, "archive", query);
    let answer = server.gates.client(&node)?.send(Method::GET, &path, None::<&()>).await;
    let answer = answer.map_err(|error| unreachable(&node, error))?;
    Ok(relay_whole(answer, server.service.shutdown()))
}

async fn unpack(
    State(server): Shared,
    Path((node, instance)): Path<(NodeName, InstanceId)>,
    RawQuery(query): RawQuery,
    archive: axum::body::Body,
) -> Result<Response, Refusal> {
    let path = below(&instance, "archive", query);
    let node_gate = server.gates.client(&node)?;
    let sent = node_gate.upload(Method::PUT, &path, TAR, archive.into_data_stream());
    let sent = server.service.shutdown().run_until_cancelled_owned(sent).await;
    let ending = || Problem::new(ProblemCode::Unavailable, "the location is shutting down");
    let answer = sent.ok_or_else(ending)?.map_err(|error| unreachable(&node, error))?;
    Ok(relay(answer, server.service.shutdown()))
}

async fn usage(
    State(server): Shared,
    Path(node): Path<NodeName>,
    Body(request): Body<UsageRequest>,
) -> Result<Response, Refusal> {
    ask(&server, &node, Method::POST, "/usage", Some(&request)).await
}
