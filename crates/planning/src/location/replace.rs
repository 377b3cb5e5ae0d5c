//! How the instances of one app change into what is wanted, one small step at a time.

use super::{Action, PlacedInstance, Standing, WantedApp};

/// What to do next with one app.
pub(super) struct Step {
    /// The instances to drain.
    pub drain: Vec<Action>,
    /// How many instances of the wanted release to start.
    pub start: u32,
}

pub(super) fn step(wanted: &WantedApp, instances: &[&PlacedInstance]) -> Step {
    let occupied = count(instances.iter());
    let (mut current, mut old): (Vec<_>, Vec<_>) = instances
        .iter()
        .copied()
        .filter(|instance| !matches!(instance.standing, Standing::Leaving | Standing::Lost))
        .partition(|instance| instance.release == wanted.release);
    let mut drain = Vec::new();

    // Scaled down: the worst go first, and among equals the youngest.
    current.sort_by_key(|instance| (instance.standing, std::cmp::Reverse(instance.created_at)));
    let surplus = count(current.iter()).saturating_sub(wanted.count);
    for instance in current.drain(..surplus as usize) {
        drain.push(drained(instance, format!("{} instances are wanted", wanted.count)));
    }

    // Old instances go when they are not needed to keep enough ready, unready ones at once.
    old.sort_by_key(|instance| (instance.standing, instance.created_at));
    let ready =
        |list: &[&PlacedInstance]| count(list.iter().filter(|i| i.standing == Standing::Ready));
    let enough = wanted.count - wanted.rollout.unavailable(wanted.count);
    let mut spare = (ready(&current) + ready(&old)).saturating_sub(enough);
    let mut kept_old = 0;
    for instance in &old {
        let goes = instance.standing == Standing::NotReady || spare > 0;
        if goes {
            drain.push(drained(instance, format!("replaced by release {}", wanted.release)));
            if instance.standing == Standing::Ready {
                spare -= 1;
            }
        } else {
            kept_old += 1;
        }
    }

    let live = count(current.iter()) + kept_old;
    let missing = wanted.count.saturating_sub(count(current.iter()));
    let surge = if kept_old > 0 { wanted.rollout.surge(wanted.count) } else { 0 };
    let room = wanted.count.saturating_add(surge).saturating_sub(live);
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
        let why = format!("makes room for release {}: max allows no more", wanted.release);
        drain.push(drained(instance, why));
    }
    Step { drain, start }
}

fn drained(instance: &PlacedInstance, why: String) -> Action {
    Action::Drain { instance: instance.id.clone(), why }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
