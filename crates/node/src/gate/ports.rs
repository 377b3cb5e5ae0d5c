//! A connection to a port of an instance, for a user who has no other way there.
//!
//! An instance's address means something only on its node, so the connection is made here, before
//! the tunnel to it is: a port on which nobody listens is an answer, not a broken connection.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, Upgrade, pass_on};
use longshore_types::{InstanceId, Port};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Node;

/// How long an instance may take to answer: it is on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub struct Wanted {
    port: Port,
}

/// Connects to a port and carries its bytes.
pub async fn connect(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    Query(Wanted { port }): Query<Wanted>,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let board = node.board.now();
    let observed = board.get(&instance).ok_or_else(|| Problem::not_found("instance", &instance))?;
    let refuse = |why: String| {
        let detail = format!("port {port} of {instance} does not answer: {why}");
        Refusal(Problem::new(ProblemCode::Conflict, detail))
    };
    let address = observed.address.ok_or_else(|| refuse("it is not running".to_owned()))?;
    let connecting = TcpStream::connect((address, port.get()));
    let connection = match timeout(ANSWER_WITHIN, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(refuse(error.to_string())),
        Err(_) => return Err(refuse("no answer in time".to_owned())),
    };
    // What is typed goes out at once; without it, it is only slower.
    let _ = connection.set_nodelay(true);
    upgrade.tunnel(&node.service, "port", move |tunnel| pass_on(tunnel, connection))
}
