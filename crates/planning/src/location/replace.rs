//! How the instances of one app change into what is wanted, one small step at a time.

use super::{Action, PlacedInstance, Standing, WantedApp};

/// What to do next with one app.
pub(super) struct Step {
    /// The instances to drain.
    pub drain: Vec<Action>,
    /// How many instances of the main release to start.
    pub start: u32,
    /// How many canaries to start.
    pub start_canaries: u32,
    /// Whether to start the command of a release.
    pub start_command: bool,
}

pub(super) fn step(wanted: &WantedApp, instances: &[&PlacedInstance]) -> Step {
    let occupied = count(instances.iter());
    let (commands, instances): (Vec<_>, Vec<_>) =
        instances.iter().copied().partition(|instance| instance.is_command);
    let mut step = instances_step(wanted, &instances, occupied);
    let release = wanted.command.as_ref().map(|command| command.release);
    let (wanted_ones, past): (Vec<_>, Vec<_>) =
        commands.into_iter().filter(stays).partition(|one| Some(one.release) == release);
    for command in past {
        step.drain.push(drained(command, "the release command is over".to_owned()));
    }
    let started = step.start + step.start_canaries;
    step.start_command = release.is_some()
        && wanted_ones.is_empty()
        && occupied.saturating_add(started) < wanted.budget;
    step
}

fn instances_step(wanted: &WantedApp, instances: &[&PlacedInstance], occupied: u32) -> Step {
    let Some(canary) = &wanted.canary else { return replace(wanted, instances, occupied) };
    let (canaries, others): (Vec<_>, Vec<_>) =
        instances.iter().copied().partition(|instance| instance.release == canary.release);
    let mut step = replace(wanted, &others, occupied);
    let mut canaries: Vec<_> = canaries.into_iter().filter(stays).collect();
    // What should run has the budget first.
    let tried = canary.count.min(wanted.budget.saturating_sub(wanted.main.count));
    drain_surplus(&mut canaries, tried, &mut step.drain);
    let missing = tried.saturating_sub(count(canaries.iter()));
    let room = wanted.budget.saturating_sub(occupied).saturating_sub(step.start);
    step.start_canaries = missing.min(room);
    step
}

/// True for what neither leaves nor is lost.
fn stays(instance: &&PlacedInstance) -> bool {
    !matches!(instance.standing, Standing::Leaving | Standing::Lost)
}

/// Of more than should run the worst go first, and among equals the youngest.
fn drain_surplus(current: &mut Vec<&PlacedInstance>, wanted: u32, drain: &mut Vec<Action>) {
    current.sort_by_key(|instance| (instance.standing, std::cmp::Reverse(instance.created_at)));
    let surplus = count(current.iter()).saturating_sub(wanted);
    for instance in current.drain(..surplus as usize) {
        drain.push(drained(instance, format!("{wanted} instances are wanted")));
    }
}

/// The way of all `instances` but canaries to the main release; `occupied` counts those too.
fn replace(wanted: &WantedApp, instances: &[&PlacedInstance], occupied: u32) -> Step {
    let main = &wanted.main;
    let (mut current, mut old): (Vec<_>, Vec<_>) = instances
        .iter()
        .copied()
        .filter(stays)
        .partition(|instance| instance.release == main.release);
    let mut drain = Vec::new();

    drain_surplus(&mut current, main.count, &mut drain);

    // Old instances go when they are not needed to keep enough ready, unready ones at once.
    old.sort_by_key(|instance| (instance.standing, instance.created_at));
    let ready =
        |list: &[&PlacedInstance]| count(list.iter().filter(|i| i.standing == Standing::Ready));
    let enough = main.count - wanted.rollout.unavailable(main.count);
    let mut spare = (ready(&current) + ready(&old)).saturating_sub(enough);
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

    let live = count(current.iter()) + kept_old;
    let missing = main.count.saturating_sub(count(current.iter()));
    let surge = if kept_old > 0 { wanted.rollout.surge(main.count) } else { 0 };
    let room = main.count.saturating_add(surge).saturating_sub(live);
    let start = missing.min(room).min(wanted.budget.saturating_sub(occupied));
    // With a budget that leaves no room for one more, one old instance has to go first.
    let stuck = start == 0 && missing > 0 && kept_old > 0 && drain.is_empty();
    let one_is_on_its_way = current.iter().any(|instance| instance.standing != Standing::Ready)
        || instances.iter().any(|instance| instance.standing == Standing::Leaving);
    if stuck
        && wanted.budget <= occupied
        && !one_is_on_its_way
        && let Some(instance) = old.first()
    {
        let why = format!("makes room for release {}: max allows no more", main.release);
        drain.push(drained(instance, why));
    }
    Step { drain, start, start_canaries: 0, start_command: false }
}

fn drained(instance: &PlacedInstance, why: String) -> Action {
    Action::Drain { instance: instance.id.clone(), why }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
