//! How the instances of one app change into what is wanted, one small step at a time.

use super::moves::{Drained, Group};
use super::{Action, PlacedInstance, Standing, Staying, WantedApp};

/// What to do next with one app.
pub(super) struct Step<'a> {
    /// The instances to drain.
    pub drain: Vec<Action>,
    /// How many instances of the main release to start.
    pub start: u32,
    /// For how many of these others may be made to leave.
    pub make_room: u32,
    /// How many canaries to start.
    pub start_canaries: u32,
    /// Whether to start the command of a release.
    pub start_command: bool,
    /// Instances of the main release on drained nodes, for each of which another is to be started.
    pub moves: Vec<&'a PlacedInstance>,
    /// The same of canaries.
    pub canary_moves: Vec<&'a PlacedInstance>,
    /// What has to stay on drained nodes for now.
    pub staying: Vec<Staying>,
}

pub(super) fn step<'a>(
    wanted: &WantedApp,
    instances: &[&'a PlacedInstance],
    drained_nodes: &Drained<'_>,
) -> Step<'a> {
    let occupied = count(instances.iter());
    let (commands, instances): (Vec<_>, Vec<_>) =
        instances.iter().copied().partition(|instance| instance.is_command);
    let mut step = instances_step(wanted, &instances, occupied, drained_nodes);
    let release = wanted.command.as_ref().map(|command| command.release);
    let (wanted_ones, past): (Vec<_>, Vec<_>) =
        commands.into_iter().filter(stays).partition(|one| Some(one.release) == release);
    for command in past {
        step.drain.push(drained(command, "the release command is over".to_owned()));
    }
    for command in wanted_ones.iter().filter(|command| drained_nodes.has(command)) {
        let why = "runs the release command to its end".to_owned();
        step.staying.push(Staying { instance: command.id.clone(), why, under_way: true });
    }
    let moved = count(step.moves.iter()) + count(step.canary_moves.iter());
    let started = step.start + step.start_canaries + moved;
    step.start_command = release.is_some()
        && wanted_ones.is_empty()
        && occupied.saturating_add(started) < wanted.budget;
    step
}

fn instances_step<'a>(
    wanted: &WantedApp,
    instances: &[&'a PlacedInstance],
    occupied: u32,
    drained: &Drained<'_>,
) -> Step<'a> {
    let Some(canary) = &wanted.canary else { return replace(wanted, instances, occupied, drained) };
    let (canaries, others): (Vec<_>, Vec<_>) =
        instances.iter().copied().partition(|instance| instance.release == canary.release);
    let mut step = replace(wanted, &others, occupied, drained);
    let canaries: Vec<_> = canaries.into_iter().filter(stays).collect();
    // What should run has the budget first.
    let tried = canary.count.min(wanted.budget.saturating_sub(wanted.main.count));
    let mut group = Group::new(canaries, drained);
    group.leave(tried, &mut step.drain);
    let missing = tried.saturating_sub(group.places());
    let started = step.start + count(step.moves.iter());
    let room = wanted.budget.saturating_sub(occupied).saturating_sub(started);
    step.start_canaries = missing.min(room);
    let room = room - step.start_canaries;
    step.canary_moves = group.moves((missing == 0, 1, room), wanted.budget, &mut step.staying);
    step
}

/// True for what neither leaves nor is lost.
pub(super) fn stays(instance: &&PlacedInstance) -> bool {
    !matches!(instance.standing, Standing::Leaving | Standing::Lost)
}

/// The way of all `instances` but canaries to the main release; `occupied` counts those too.
fn replace<'a>(
    wanted: &WantedApp,
    instances: &[&'a PlacedInstance],
    occupied: u32,
    drained_nodes: &Drained<'_>,
) -> Step<'a> {
    let main = &wanted.main;
    let (current, mut old): (Vec<_>, Vec<_>) = instances
        .iter()
        .copied()
        .filter(stays)
        .partition(|instance| instance.release == main.release);
    let mut drain = Vec::new();

    let mut current = Group::new(current, drained_nodes);
    current.leave(main.count, &mut drain);

    // Old instances go when they are not needed to keep enough ready, unready ones at once, and first those
    // whose node is to be empty.
    old.sort_by_key(|old| (old.standing, !drained_nodes.has(old), old.created_at));
    let ready =
        |list: &[&PlacedInstance]| count(list.iter().filter(|i| i.standing == Standing::Ready));
    let enough = main.count - wanted.rollout.unavailable(main.count);
    let mut spare = (current.ready() + ready(&old)).saturating_sub(enough);
    let mut kept_old = 0;
    for instance in &old {
        let goes = instance.standing == Standing::NotReady || spare > 0;
        if goes {
            drain.push(drained(instance, format!("replaced by release {}", main.release)));
            if instance.standing == Standing::Ready {
                spare -= 1;
            }
        } else {
            kept_old += 1;
        }
    }

    let live = current.places() + kept_old;
    // For what should run, and never for what a rollout would have beside it.
    let make_room = wanted.make_room.min(main.count.saturating_sub(live));
    let missing = main.count.saturating_sub(current.places());
    let surge = if kept_old > 0 { wanted.rollout.surge(main.count) } else { 0 };
    let room = main.count.saturating_add(surge).saturating_sub(live);
    let start = missing.min(room).min(wanted.budget.saturating_sub(occupied));
    // With a budget that leaves no room for one more, one old instance has to go first.
    let stuck = start == 0 && missing > 0 && kept_old > 0 && drain.is_empty();
    let one_is_on_its_way = current.any_unready()
        || instances.iter().any(|instance| instance.standing == Standing::Leaving);
    if stuck
        && wanted.budget <= occupied
        && !one_is_on_its_way
        && let Some(instance) = old.first()
    {
        let why = format!("makes room for release {}: max allows no more", main.release);
        drain.push(drained(instance, why));
    }
    let mut staying = Vec::new();
    for instance in old.iter().filter(|instance| drained_nodes.has(instance)) {
        let why = format!("waits until release {} takes its place", main.release);
        staying.push(Staying { instance: instance.id.clone(), why, under_way: true });
    }
    let room = wanted.budget.saturating_sub(occupied).saturating_sub(start);
    let surge = wanted.rollout.surge(main.count).max(1);
    // One thing after the other: the release first.
    let is_settled = missing == 0 && old.is_empty();
    let moves = current.moves((is_settled, surge, room), wanted.budget, &mut staying);
    let (start_canaries, canary_moves) = (0, Vec::new());
    let start_command = false;
    Step { drain, start, make_room, start_canaries, start_command, moves, canary_moves, staying }
}

pub(super) fn drained(instance: &PlacedInstance, why: String) -> Action {
    Action::Drain { instance: instance.id.clone(), why }
}

pub(super) fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
