//! What a drain would do, before anybody asks for it.

use longshore_types::{AppName, Cordon, InstanceId, NodeName, ProjectName};

use super::choose::{Room, no_place};
use super::{Goal, PlacedInstance, Snapshot, Standing, WantedApp};

/// What would become of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The instance.
    pub instance: InstanceId,
    /// The owner of its app.
    pub project: ProjectName,
    /// Its app.
    pub app: AppName,
    /// Where another would take its place; nowhere when it stays, or leaves anyway.
    pub to: Option<NodeName>,
    /// Why there, or why it stays.
    pub why: String,
}

/// What draining `node` would do to each of its instances, as things are in `snapshot`.
pub fn preview_drain(snapshot: &Snapshot, node: &NodeName) -> Vec<Move> {
    let mut snapshot = snapshot.clone();
    let cordon = Cordon { since: snapshot.now, by: None, drains: true, removed: false };
    for state in snapshot.nodes.iter_mut().filter(|state| state.name == *node) {
        state.cordon = Some(cordon.clone());
    }
    let mut room = Room::new(&snapshot);
    let here = snapshot.instances.iter().filter(|instance| instance.node == *node);
    here.map(|instance| {
        let (to, why) = match fate(&snapshot, instance, &mut room) {
            Ok((to, why)) => (Some(to), why),
            Err(why) => (None, why),
        };
        let PlacedInstance { id, project, app, .. } = instance.clone();
        Move { instance: id, project, app, to, why }
    })
    .collect()
}

/// Where another would take its place and why there, or why none would.
fn fate(
    snapshot: &Snapshot,
    instance: &PlacedInstance,
    room: &mut Room<'_>,
) -> Result<(NodeName, String), String> {
    let is_of_app =
        |project: &ProjectName, app: &AppName| (project, app) == (&instance.project, &instance.app);
    let instances = snapshot.instances.iter();
    let mut of_app = instances.filter(|other| is_of_app(&other.project, &other.app));
    match instance.standing {
        Standing::Leaving => return Err("is ending already".to_owned()),
        Standing::Lost => return fate_of_lost(snapshot, instance, room),
        Standing::NotReady | Standing::Ready => {}
    }
    if let Some(pinned) = instance.pinned {
        return Err(format!("stays: {}", pinned.why()));
    }
    if instance.is_command {
        return Err("runs the release command to its end".to_owned());
    }
    if let Some(new) = of_app.clone().find(|other| other.replaces.as_ref() == Some(&instance.id)) {
        return Ok((new.node.clone(), format!("{} takes its place", new.id)));
    }
    let wanted = snapshot.wanted.iter().find(|wanted| is_of_app(&wanted.project, &wanted.app));
    let Some(wanted) = wanted else { return Err("ends: its app was removed from here".to_owned()) };
    let goal = goal_of(wanted, instance);
    let n_of_app = u32::try_from(of_app.by_ref().count()).unwrap_or(u32::MAX);
    if goal.release == instance.release && n_of_app >= wanted.budget {
        let budget = wanted.budget;
        return Err(format!(
            "stays: no other can be started beside it: at most {budget} instances may run here"
        ));
    }
    let taken = take_place(room, wanted, instance);
    taken.map_err(|why| format!("stays: {why}"))
}

/// Where another takes the place of an instance that is lost with its node once that is forgotten, where none has it.
fn fate_of_lost(
    snapshot: &Snapshot,
    instance: &PlacedInstance,
    room: &mut Room<'_>,
) -> Result<(NodeName, String), String> {
    let is_of_app =
        |project: &ProjectName, app: &AppName| (project, app) == (&instance.project, &instance.app);
    let wanted = snapshot.wanted.iter().find(|wanted| is_of_app(&wanted.project, &wanted.app));
    let Some(wanted) = wanted else {
        return Err("is lost with its node, and not wanted".to_owned());
    };
    if instance.is_command {
        let why =
            "is lost with its node; the command runs again elsewhere if its release still needs it";
        return Err(why.to_owned());
    }
    let of_app = snapshot.instances.iter().filter(|one| is_of_app(&one.project, &one.app));
    let of_app = of_app.filter(|one| !one.is_command);
    let runs = |one: &&PlacedInstance| matches!(one.standing, Standing::NotReady | Standing::Ready);
    let n_running = u32::try_from(of_app.clone().filter(runs).count()).unwrap_or(u32::MAX);
    let n_canaries = wanted.canary.as_ref().map_or(0, |canary| canary.count);
    let n_missing = (wanted.main.count + n_canaries).saturating_sub(n_running) as usize;
    let mut lost_here =
        of_app.filter(|one| one.standing == Standing::Lost && one.node == instance.node);
    if lost_here.position(|one| one.id == instance.id).is_none_or(|nth| nth >= n_missing) {
        return Err("is lost with its node; another has its place".to_owned());
    }
    match take_place(room, wanted, instance) {
        Ok((node, why)) => Ok((node, format!("lost with its node; {why}"))),
        Err(why) => Err(format!("is lost with its node: {why}")),
    }
}

/// What should run in place of an instance.
fn goal_of<'a>(wanted: &'a WantedApp, instance: &PlacedInstance) -> &'a Goal {
    let canary = wanted.canary.as_ref().filter(|canary| canary.release == instance.release);
    canary.unwrap_or(&wanted.main)
}

/// Takes the room for what should run in place of an instance: where, and why there; or why there is none.
fn take_place(
    room: &mut Room<'_>,
    wanted: &WantedApp,
    instance: &PlacedInstance,
) -> Result<(NodeName, String), String> {
    let goal = goal_of(wanted, instance);
    let app = (wanted.project.to_string(), wanted.app.to_string());
    let decision = room.decide(&app, goal);
    match room.take(&decision, &app, goal) {
        Some((node, _)) => Ok((node, decision.why)),
        None => Err(no_place(&decision, &instance.node)),
    }
}
