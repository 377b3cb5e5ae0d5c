//! Which apps the next plan looks at.
//!
//! A plan of one app depends on its own instances, on what operators wish, and on what the others leave of each node.
//! So only apps are looked at of which something changed, and those of which something found no place or has to leave
//! a node; and all of them when nodes come, go, fall silent, or are others than before, and now and then.
//!
//! Who is to leave for an app that may have others leave is found among all instances, and the room that they leave is
//! kept from what matters less. So as long as such an app has to be looked at, all are. One that found no place has to
//! in each round.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_types::{Cordon, NodeName, ReachAddress, RuntimeOffer, Traits};
use tokio::time::Instant;

use super::{AppKey, LOST_AFTER, Moment, ReportedNode, State};

/// How often all are looked at of which otherwise only those are that may have changed.
const WHOLE_INTERVAL: Duration = Duration::from_secs(30);

/// Whether all have to be looked at that were at that time; nothing when they have to be now.
pub(super) fn is_whole_due(whole_at: Option<Instant>, moment: Moment) -> bool {
    whole_at.is_none_or(|at| moment.instant.saturating_duration_since(at) >= WHOLE_INTERVAL)
}

/// What has to be looked at.
#[derive(Debug, Default)]
pub struct Due {
    apps: BTreeSet<AppKey>,
    /// When all were looked at last; nothing when they have to be now.
    whole_at: Option<Instant>,
    /// The nodes as they were then.
    nodes: Vec<Known>,
}

/// What a plan knows of a node beside what it has room for.
#[derive(Debug)]
struct Known {
    node: NodeName,
    reachable: bool,
    lost: bool,
    cordon: Option<Cordon>,
    /// What it has is not known yet.
    owes: bool,
    runtimes: Vec<RuntimeOffer>,
    traits: Traits,
    /// What its last tries to reach addresses came to, whenever that was.
    reached: Vec<(ReachAddress, Option<String>)>,
}

impl Due {
    /// Something of these apps changed.
    pub fn extend(&mut self, apps: impl IntoIterator<Item = AppKey>) {
        self.apps.extend(apps);
    }

    /// All have to be looked at.
    pub fn all(&mut self) {
        self.whole_at = None;
    }
}

impl State {
    /// The apps to look at now; nothing when all are.
    pub(super) fn take_due(&mut self, moment: Moment) -> Option<BTreeSet<AppKey>> {
        let mut apps = std::mem::take(&mut self.due.apps);
        apps.extend(self.instances.take_changed_apps());
        let waiting = self.shortfalls.iter().map(|one| (one.project.clone(), one.app.clone()));
        apps.extend(waiting);
        apps.extend(self.staying.iter().map(|one| (one.project.clone(), one.app.clone())));
        let makes_room = |key: &AppKey| {
            self.allotments.get(key).is_some_and(|allotment| allotment.make_room > 0)
        };
        let is_whole = is_whole_due(self.due.whole_at, moment)
            || !self.are_nodes_known(moment)
            || apps.iter().any(makes_room);
        if is_whole {
            self.due.whole_at = Some(moment.instant);
            let nodes = self.all_nodes();
            let nodes = nodes.map(|(node, reported)| self.known(node, reported, moment)).collect();
            self.due.nodes = nodes;
            return None;
        }
        Some(apps)
    }

    /// Whether the nodes are as they were when all were looked at; nothing is copied for that.
    fn are_nodes_known(&self, moment: Moment) -> bool {
        let mut known = self.due.nodes.iter();
        let is_known = |(name, reported): (&NodeName, Option<&ReportedNode>)| {
            known.next().is_some_and(|known| self.is_as_known(name, reported, known, moment))
        };
        self.all_nodes().all(is_known) && known.next().is_none()
    }

    fn is_as_known(
        &self,
        name: &NodeName,
        reported: Option<&ReportedNode>,
        known: &Known,
        moment: Moment,
    ) -> bool {
        let Known { node, reachable, lost, cordon, owes, runtimes, traits, reached } = known;
        let report = reported.map(|reported| &reported.report);
        let now = report.into_iter().flat_map(|report| &report.reached);
        *name == *node
            && self.reachable(reported, moment) == *reachable
            && (self.silence(reported, moment) >= LOST_AFTER) == *lost
            && self.cordons.get(name) == cordon.as_ref()
            && reported.is_some_and(|reported| reported.owes) == *owes
            && report.map_or(&[][..], |report| &report.runtimes) == runtimes
            && report.map_or_else(|| *traits == Traits::default(), |r| r.traits == *traits)
            && now
                .map(|one| (&one.address, &one.error))
                .eq(reached.iter().map(|(address, error)| (address, error)))
    }

    fn known(&self, node: &NodeName, reported: Option<&ReportedNode>, moment: Moment) -> Known {
        let report = reported.map(|reported| &reported.report);
        let reached = report.into_iter().flat_map(|report| &report.reached);
        Known {
            node: node.clone(),
            reachable: self.reachable(reported, moment),
            lost: self.silence(reported, moment) >= LOST_AFTER,
            cordon: self.cordons.get(node).cloned(),
            owes: reported.is_some_and(|reported| reported.owes),
            reached: reached.map(|one| (one.address.clone(), one.error.clone())).collect(),
            runtimes: report.map(|report| report.runtimes.clone()).unwrap_or_default(),
            traits: report.map(|report| report.traits.clone()).unwrap_or_default(),
        }
    }
}
