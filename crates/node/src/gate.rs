//! What the location asks of a node on behalf of users: logs, exec, ports, files, what instances use, its images;
//! and what other nodes ask: parts of layers.

mod archive;
mod exec;
mod layers;
mod ports;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use futures_util::stream::{self, Stream, StreamExt};
use longshore_api::links::{InstanceUsage, LogLine, LogStream, UsageRequest};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, chain, json_lines};
use longshore_runtime::logs::{Follow, StreamTag, read_log};
use longshore_types::{InstanceId, InstancePhase, NodeImage, Timestamp};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::board::Entries;
use crate::instance::log_path;
use crate::{Node, space, stock};
pub use layers::Giving;

/// How many lines may wait for a slow reader.
const LINES_AHEAD: usize = 64;

/// How long the last lines of a removed instance's log may take to be read.
const LAST_LINES: Duration = Duration::from_secs(1);

pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/instances/{instance}/logs", get(logs))
        .route("/instances/{instance}/exec", get(exec::exec))
        .route("/instances/{instance}/attach", get(exec::attach))
        .route("/instances/{instance}/port-forward", get(ports::connect))
        .route("/instances/{instance}/archive", get(archive::pack).put(archive::unpack))
        .route("/usage", post(usage))
        .route("/images", get(images))
        .route("/layers/{layer}/frames/{frame}", get(layers::frame))
        .with_state(node)
}

#[derive(Debug, Deserialize)]
struct LogsQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
    /// Only lines from then on.
    #[serde(default)]
    since: Timestamp,
}

async fn logs(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refusal> {
    if !node.board.now().contains_key(&instance) {
        return Err(Problem::not_found("instance", &instance).into());
    }
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    let shutdown = node.service.shutdown();
    let reading = send_lines(node, instance, query, sender);
    // The reader and its answer end together: either the log is read out, or nobody listens.
    let reading = stream::once(reading).filter_map(|()| std::future::ready(None));
    let lines = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|line| (line, receiver))
    });
    Ok(json_lines(stream::select(reading, lines), shutdown))
}

/// Sends the lines of an instance's log. A log that is followed goes on over restarts, until the
/// instance is removed or stays ended.
async fn send_lines(
    node: Arc<Node>,
    instance: InstanceId,
    query: LogsQuery,
    sender: mpsc::Sender<LogLine>,
) {
    let path = log_path(&node, &instance);
    let mut board = node.board.subscribe();
    let mode = if query.follow { Follow::UntilExit } else { Follow::No };
    let mut run = board.borrow().get(&instance).and_then(|observed| observed.started_at);
    let (mut tail, mut since) = (query.tail, query.since);
    loop {
        let mut entries = std::pin::pin!(read_log(&path, tail, mode));
        while let Some(entry) = next_unless_removed(&mut entries, &board, &instance).await {
            match entry {
                Ok(entry) if entry.at < since => {}
                Ok(entry) => {
                    if sender.send(line(entry)).await.is_err() {
                        return; // The reader went away.
                    }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a log");
                    return;
                }
            }
        }
        if !query.follow {
            return;
        }
        let before = run;
        let next = board.wait_for(|entries| match entries.get(&instance) {
            None => true,
            Some(now) => {
                let begun = now.started_at.is_some() && now.started_at != before;
                begun || now.phase == InstancePhase::Exited
            }
        });
        let next = next.await.ok().and_then(|entries| entries.get(&instance).cloned());
        let Some(next) = next.filter(|next| next.phase != InstancePhase::Exited) else { return };
        run = next.started_at;
        since = next.started_at.unwrap_or_default().max(query.since);
        tail = None;
    }
}

/// The next entry. A log that has not begun when its instance is removed never will; one that has
/// ends by itself.
async fn next_unless_removed<S: Stream + Unpin>(
    entries: &mut S,
    board: &watch::Receiver<Entries>,
    instance: &InstanceId,
) -> Option<S::Item> {
    let mut board = board.clone();
    let removed = async {
        // An agent that ends closes the board, and its readers with it.
        let _ = board.wait_for(|entries| !entries.contains_key(instance)).await;
        tokio::time::sleep(LAST_LINES).await;
    };
    tokio::select! {
        // The lines that are there already do not wait for a look at the board.
        biased;
        entry = entries.next() => entry,
        () = removed => None,
    }
}

fn line(entry: longshore_runtime::logs::LogLine) -> LogLine {
    let stream = match entry.stream {
        StreamTag::Out => LogStream::Stdout,
        StreamTag::Err => LogStream::Stderr,
    };
    LogLine { at: entry.at, stream, text: entry.text }
}

async fn usage(
    State(node): State<Arc<Node>>,
    Body(request): Body<UsageRequest>,
) -> axum::Json<Vec<InstanceUsage>> {
    let mut usages = Vec::with_capacity(request.instances.len());
    for instance in request.instances {
        // One that has no container now has no cgroup to read.
        if let Ok(used) = node.shims.stats(&instance).await {
            usages.push(usage_of(&node, instance, used));
        }
    }
    axum::Json(usages)
}

/// The images that are here or on their way. What keeps them, the location adds.
async fn images(State(node): State<Arc<Node>>) -> Result<axum::Json<Vec<NodeImage>>, Refusal> {
    let listed = tokio::task::spawn_blocking(move || stock::list(&node)).await;
    let failed = |why: String| {
        tracing::warn!(why, "cannot list images");
        Refusal(Problem::new(
            ProblemCode::Internal,
            format!("the node cannot list its images: {why}"),
        ))
    };
    // A panic in it would be a bug; it is told like a failure.
    let listed = listed.map_err(|error| failed(chain(&error)))?;
    listed.map(axum::Json).map_err(|error| failed(chain(&error)))
}

fn usage_of(node: &Node, instance: InstanceId, used: longshore_runtime::Usage) -> InstanceUsage {
    static CLOCK: LazyLock<Instant> = LazyLock::new(Instant::now);
    let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let traffic = node.network.traffic(&instance);
    InstanceUsage {
        at_micros: micros(CLOCK.elapsed()),
        cpu_micros: micros(used.cpu_time),
        cpu_periods: used.cpu_periods,
        cpu_throttled: used.cpu_throttled,
        memory: used.memory,
        memory_peak: used.memory_peak,
        pids: used.pids,
        disk: space::usage(node, &instance).map(|usage| usage.used),
        received: traffic.map(|traffic| traffic.received),
        sent: traffic.map(|traffic| traffic.sent),
        instance,
    }
}
