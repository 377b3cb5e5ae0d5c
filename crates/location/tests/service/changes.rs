//! What a node is told and says once, and what differs after that.

use http::Method;
use longshore_api::links::{AssignmentSet, InstanceStatus, NodeReport, ReportTaken};
use longshore_link::LineStream;
use longshore_types::{Generation, InstancePhase};

use crate::{World, of_web, report, set, until};

const PATH: &str = "/link/nodes/n1/report";

impl World {
    /// Says something, as a change where it is one; gives what is known of it.
    async fn taken(&self, report: &NodeReport) -> Option<ReportTaken> {
        let path = match report.since {
            None => PATH.to_owned(),
            Some(_) => format!("{PATH}/changes"),
        };
        self.location.call(Method::POST, &path, Some(report)).await.unwrap()
    }

    /// The phases of all instances, once they are these.
    async fn phases(&mut self, phases: &[InstancePhase]) {
        let phase = |status: &InstanceStatus| status.observed.phase;
        self.reported(|said| said.instances.iter().map(|one| phase(one)).eq(phases.to_vec())).await;
    }
}

/// What there is once a connection has said that there are so many, and how much each line said.
async fn followed(
    sets: &mut LineStream<AssignmentSet>,
    told: &mut AssignmentSet,
    count: usize,
) -> Vec<(Option<Generation>, usize)> {
    let mut lines = Vec::new();
    while told.assignments.len() != count {
        let next = until(sets, |_| true).await;
        lines.push((next.since, next.assignments.len()));
        *told = told.followed_by(next).expect("it builds on what was told");
    }
    lines
}

#[tokio::test]
async fn a_node_that_asks_for_changes_is_told_all_of_its_assignments_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    let path = "/link/nodes/n1/assignments?changes=true";
    let mut sets = world.watch::<AssignmentSet>(path).await;
    let first = until(&mut sets, |_| true).await;
    assert_eq!((first.since, first.assignments.len()), (None, 0));
    let mut told = first;
    world.allot.send_replace(of_web(5, 2));
    followed(&mut sets, &mut told, 2).await;
    let generation = told.generation;
    world.allot.send_replace(of_web(6, 3));
    let lines = followed(&mut sets, &mut told, 3).await;
    assert_eq!(lines, [(Some(generation), 1)]);

    // A connection begins with the whole, and one of the release before knows nothing else.
    let mut again = world.watch::<AssignmentSet>(path).await;
    assert_eq!(until(&mut again, |_| true).await, told);
    let mut before = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    assert_eq!(until(&mut before, |_| true).await, told);
    world.allot.send_replace(of_web(7, 4));
    let whole = until(&mut before, |_| true).await;
    assert_eq!((whole.since, whole.assignments.len()), (None, 4));
    followed(&mut sets, &mut told, 4).await;
    assert_eq!(told, whole);
    world.stop().await;
}

#[tokio::test]
async fn a_node_says_what_it_has_once_and_a_change_of_what_is_not_known_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 2));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 2).await;
    let gate = "unix:/nowhere/gate.sock";
    let whole = report("n1", gate, &assigned.assignments);
    let change = |number, since, instances| NodeReport {
        number,
        since: Some(since),
        instances,
        ..whole.clone()
    };
    let known = |number| Some(ReportTaken { number });
    let mut ill = (*whole.instances[0]).clone();
    ill.phase = InstancePhase::Unhealthy;
    let ill = vec![ill.into()];
    // Nothing is known yet of what this builds on.
    assert_eq!(world.taken(&change(7, 6, ill.clone())).await, known(None));
    let numbered = NodeReport { number: 7, ..whole.clone() };
    assert_eq!(world.taken(&numbered).await, known(Some(7)));
    world.phases(&[InstancePhase::Healthy; 2]).await;
    assert_eq!(world.taken(&change(8, 7, ill.clone())).await, known(Some(8)));
    world.phases(&[InstancePhase::Unhealthy, InstancePhase::Healthy]).await;
    // It came late, or twice.
    assert_eq!(world.taken(&change(8, 7, vec![])).await, known(None));
    let gone = vec![whole.instances[1].instance.clone()];
    let gone = NodeReport { gone, ..change(9, 8, vec![]) };
    assert_eq!(world.taken(&gone).await, known(Some(9)));
    world.phases(&[InstancePhase::Unhealthy, InstancePhase::Pending]).await;
    // One of the release before says all each time, and knows of no answer.
    assert_eq!(world.taken(&whole).await, None);
    world.phases(&[InstancePhase::Healthy; 2]).await;
    assert_eq!(world.taken(&change(10, 9, ill)).await, known(None));
    world.stop().await;
}
