//! The nodes of a location as a process of their own: they say that everything which they are given runs.
//!
//! Each node does over the link what an agent does: it follows its assignments and reports all that it has, at
//! once when that changed and every few seconds otherwise. When the answer to a report says that it is stored, the
//! names of the apps that are new in it are printed, one a line.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{AssignmentSet, Intent, NodeReport, ObservedInstance};
use longshore_link::{CallError, Client, Endpoint, now};
use longshore_types::{ByteCount, Capacity, InstanceId, InstancePhase, MilliCpu};

/// How often a node reports without news.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a node waits before it tries again.
const RETRY: Duration = Duration::from_millis(100);
/// What a node offers: room for everything.
const CAPACITY: Capacity = Capacity {
    cpu: MilliCpu(100_000_000),
    memory: ByteCount::gib(1 << 20),
    disk: ByteCount::gib(1 << 20),
};

/// Where they are.
#[derive(Args)]
pub struct Options {
    /// Where the location listens
    #[arg(long)]
    link: Endpoint,
    /// How many
    #[arg(long)]
    nodes: u32,
}

/// Runs until it is killed.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = Client::new(options.link.clone());
        let nodes = (0..options.nodes).map(|number| Node::new(number, link.clone()).run());
        futures_util::future::join_all(nodes).await;
    });
    Ok(())
}

struct Node {
    name: String,
    link: Client,
    /// The instances of which the location has stored that they are here.
    told: BTreeSet<InstanceId>,
}

impl Node {
    fn new(number: u32, link: Client) -> Self {
        Self { name: format!("n{number:04}"), link, told: BTreeSet::new() }
    }

    async fn run(mut self) {
        loop {
            if let Err(error) = self.follow().await {
                eprintln!("{}: {error}", self.name);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Carries out assignments until the location is away.
    async fn follow(&mut self) -> Result<(), CallError> {
        let path = format!("/link/nodes/{}/assignments", self.name);
        // A location tells nothing to a node that it has not heard of.
        self.report(None).await?;
        let mut sets = self.link.watch::<AssignmentSet>(&path).await?;
        let mut set = AssignmentSet::default();
        loop {
            if let Ok(next) = tokio::time::timeout(HEARTBEAT, sets.next()).await {
                let Some(next) = next else { return Ok(()) };
                set = next?;
            }
            self.report(Some(&set)).await?;
            let given = set.assignments.iter();
            let given: BTreeSet<_> = given.map(|given| given.instance.clone()).collect();
            let mut news = String::new();
            for one in &set.assignments {
                if !self.told.contains(&one.instance) {
                    news.push_str(one.release.manifest.app.as_str());
                    news.push('\n');
                }
            }
            self.told = given;
            let mut output = std::io::stdout().lock();
            // Whoever started this has ended, and so does this.
            if output.write_all(news.as_bytes()).and_then(|()| output.flush()).is_err() {
                std::process::exit(0);
            }
        }
    }

    async fn report(&self, set: Option<&AssignmentSet>) -> Result<(), CallError> {
        let given = set.into_iter().flat_map(|set| &set.assignments);
        let instances = given.map(|assignment| {
            let id = assignment.instance.clone();
            let mut observed = ObservedInstance::pending(id, assignment.generation);
            observed.phase = match assignment.intent {
                Intent::Run => InstancePhase::Healthy,
                Intent::Stop => InstancePhase::Exited,
            };
            observed.started_at = Some(now());
            observed.ready_at = observed.started_at;
            observed
        });
        let report = NodeReport {
            node: self.name.parse().expect("a letter and digits are a name"),
            gate: "unix:/nowhere".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: CAPACITY,
            acknowledged: set.map(|set| set.generation),
            images: Vec::new(),
            instances: instances.collect(),
            network: "nowhere".to_owned(),
            runtimes: Vec::new(),
            image_mount: None,
            traits: Default::default(),
            location_epoch: set.map(|set| set.location_epoch).unwrap_or_default(),
            handed_over: None,
            gpus: Vec::new(),
            reached: Vec::new(),
        };
        let path = format!("/link/nodes/{}/report", self.name);
        self.link.call(Method::POST, &path, Some(&report)).await
    }
}
