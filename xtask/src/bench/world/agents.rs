//! The nodes of a location as a process of their own: they say that everything which they are given runs.
//!
//! Each node does over the link what an agent does: it follows its assignments and reports what it has, at once when
//! that changed and every few seconds otherwise, as changes where the location knows the rest. When the answer to a report says that it is stored, the
//! names of the apps that are new in it are printed, one a line.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{
    Assignment, AssignmentSet, Intent, NodeReport, ObservedInstance, ReportChanges, ReportTaken,
    Said, Told,
};
use longshore_link::{CallError, Client, Endpoint, now};
use longshore_types::{
    ByteCount, Capacity, Generation, InstanceId, InstancePhase, LocationEpoch, MilliCpu,
};

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
    /// What it has, as it reports it.
    observed: Told<ObservedInstance>,
    changes: ReportChanges<ObservedInstance>,
    /// The instances of which the location has stored that they are here.
    told: BTreeSet<InstanceId>,
}

impl Node {
    fn new(number: u32, link: Client) -> Self {
        let (observed, told) = Default::default();
        Self {
            name: format!("n{number:04}"),
            link,
            observed,
            changes: ReportChanges::new(now()),
            told,
        }
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
        let path = format!("/link/nodes/{}/assignments?changes=true", self.name);
        // A location tells nothing to a node that it has not heard of.
        self.report(None).await?;
        let mut sets = self.link.watch::<AssignmentSet>(&path).await?;
        let mut last = None;
        loop {
            let next = match tokio::time::timeout(HEARTBEAT, sets.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(next)) => Some(next?),
                Err(_idle) => None,
            };
            if let Some(next) = &next {
                let now = (next.location_epoch, next.generation);
                let is_of_it = |since| last.is_some_and(|(_, generation)| generation == since);
                if !next.since.is_none_or(is_of_it) {
                    // The next connection begins with the whole.
                    return Ok(());
                }
                last = Some(now);
                self.carry_out(next);
            }
            self.report(last).await?;
            let mut news = String::new();
            for one in next.iter().flat_map(|next| &next.assignments) {
                if self.told.insert(one.instance.clone()) {
                    news.push_str(one.release.manifest.app.as_str());
                    news.push('\n');
                }
            }
            let mut output = std::io::stdout().lock();
            // Whoever started this has ended, and so does this.
            if output.write_all(news.as_bytes()).and_then(|()| output.flush()).is_err() {
                std::process::exit(0);
            }
        }
    }

    /// All that it is given runs at once.
    fn carry_out(&mut self, next: &AssignmentSet) {
        if next.since.is_none() {
            self.observed = Told::default();
        }
        for instance in &next.gone {
            self.observed.remove(instance);
        }
        for assignment in &next.assignments {
            self.observed.insert(assignment.instance.clone(), Arc::new(observe(assignment)));
        }
    }

    /// Reports until the location knows it.
    async fn report(&mut self, of: Option<(LocationEpoch, Generation)>) -> Result<(), CallError> {
        loop {
            let Said { number, since, instances, gone } = self.changes.of(&self.observed);
            let report = NodeReport {
                node: self.name.parse().expect("a letter and digits are a name"),
                number,
                since,
                gate: "unix:/nowhere".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                capacity: CAPACITY,
                acknowledged: of.map(|(_, generation)| generation),
                images: Vec::new(),
                pulling: Vec::new(),
                instances,
                gone,
                network: "nowhere".to_owned(),
                runtimes: Vec::new(),
                image_mount: None,
                traits: Default::default(),
                location_epoch: of.map(|(epoch, _)| epoch).unwrap_or_default(),
                handed_over: None,
                gpus: Vec::new(),
                reached: Vec::new(),
            };
            let path = match since {
                None => format!("/link/nodes/{}/report", self.name),
                Some(_) => format!("/link/nodes/{}/report/changes", self.name),
            };
            let answer = self.link.call(Method::POST, &path, Some(&report)).await?;
            let answer: Option<ReportTaken> = answer;
            if self.changes.taken(answer) {
                return Ok(());
            }
        }
    }
}

fn observe(assignment: &Assignment) -> ObservedInstance {
    let id = assignment.instance.clone();
    let mut observed = ObservedInstance::pending(id, assignment.generation);
    observed.phase = match assignment.intent {
        Intent::Run => InstancePhase::Healthy,
        Intent::Stop => InstancePhase::Exited,
    };
    observed.started_at = Some(now());
    observed.ready_at = observed.started_at;
    observed
}
