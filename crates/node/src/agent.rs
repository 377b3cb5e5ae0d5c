//! From the assignments of the location to actors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use longshore_api::links::{Assignment, AssignmentSet, HandedOver, ObservedInstance};
use longshore_link::{CallError, Client, chain};
use longshore_runtime::{Adopted, AdoptedState};
use longshore_types::{Generation, InstanceId, LocationEpoch};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::disk::Assignments;
use crate::instance::{Actor, Wish};
use crate::uplink::RETRY;
use crate::{Node, NodeError};

/// The actors, and which assignments they carry out.
pub struct Agent {
    node: Arc<Node>,
    actors: BTreeMap<InstanceId, Running>,
    /// The life of the location that gave the assignments, and the generation of these in it.
    place: (LocationEpoch, Generation),
    carried: watch::Sender<Carried>,
}

/// What is carried out, as it is reported.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// The life of the location that gave it.
    pub location_epoch: LocationEpoch,
    /// The generation, once the location has been heard.
    pub acknowledged: Option<Generation>,
    /// All of it, for a location that lost its store and asked for it.
    pub handed_over: Option<HandedOver>,
}

/// An actor at work.
struct Running {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Takes up what an earlier agent left: adopts what runs, removes what nobody wants, and
    /// starts an actor for every assignment on disk. Returns once each has looked at its instance,
    /// so that the first report tells the truth.
    pub async fn restore(node: Arc<Node>) -> Result<Self, NodeError> {
        let (stored, leftovers) = node.disk.assignments()?;
        let Assignments { location_epoch, generation, assignments } = stored;
        let keep: BTreeSet<InstanceId> =
            assignments.iter().map(|assignment| assignment.instance.clone()).collect();
        let mut adopted = BTreeMap::new();
        for found in node.shims.adopt().await? {
            let id = found.spec.id.clone();
            if keep.contains(&id) {
                adopted.insert(id, found);
            } else if let Err(error) = node.shims.remove(&id).await {
                tracing::warn!(%id, error = &error as &dyn std::error::Error, "cannot remove a leftover");
            }
        }
        if let Err(error) = node.network.retain(&keep).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot remove leftovers of the network");
        }
        unmount_leftovers(&node, &adopted);
        for dir in leftovers {
            if let Err(message) = remove_leftover(&node, &dir) {
                tracing::warn!(dir = %dir.display(), message, "cannot remove a leftover");
            }
        }
        let mut agent = Self {
            node,
            actors: BTreeMap::new(),
            place: (location_epoch, generation),
            carried: watch::Sender::new(Carried { location_epoch, ..Carried::default() }),
        };
        for assignment in assignments {
            let found = adopted.remove(&assignment.instance);
            agent.spawn(&assignment, found);
        }
        agent.wait_for_first_look().await;
        Ok(agent)
    }

    /// What is carried out.
    pub fn carried(&self) -> watch::Receiver<Carried> {
        self.carried.subscribe()
    }

    fn spawn(&mut self, assignment: &Assignment, adopted: Option<Adopted>) {
        let instance = assignment.instance.clone();
        let (wish, wishes) = watch::channel(Wish::Carry(Box::new(assignment.clone())));
        let actor = Actor::new(Arc::clone(&self.node), wishes, adopted);
        let task = tokio::spawn(actor.run());
        self.actors.insert(instance, Running { wish, task });
    }

    /// An actor puts its first entry on the board once it knows the health of what it adopted.
    async fn wait_for_first_look(&self) {
        let mut board = self.node.board.subscribe();
        let all_looked = board
            .wait_for(|entries| self.actors.keys().all(|instance| entries.contains_key(instance)));
        // The board lives as long as the node; there is no other error.
        let _ = all_looked.await;
    }

    /// Follows the location until shutdown; then, if `stop_file` is there, ends everything.
    pub async fn run(mut self, location: Client, stop_file: PathBuf) -> Result<(), NodeError> {
        let shutdown = self.node.service.shutdown();
        shutdown.run_until_cancelled(self.follow(&location)).await;
        if stop_file.exists() {
            self.end_everything().await;
        }
        Ok(())
    }

    /// Never ends by itself.
    async fn follow(&mut self, location: &Client) {
        let path = format!("/link/nodes/{}/assignments?changes=true", self.node.name);
        let mut wait = RETRY.0;
        loop {
            match location.watch::<AssignmentSet>(&path).await {
                Ok(mut sets) => {
                    // A location that has just begun knows nothing of this node until it reports.
                    self.carried.send_modify(|_| {});
                    let mut told = AssignmentSet::default();
                    while let Some(next) = sets.next().await {
                        wait = RETRY.0;
                        // Not acknowledged, all of it is sent over the next connection.
                        let is_taken = match next {
                            Ok(next) => self.take_next(&mut told, next),
                            Err(error) => {
                                log_broken(&error);
                                // What comes next may build on it.
                                false
                            }
                        };
                        if !is_taken {
                            break;
                        }
                    }
                }
                Err(error) => log_broken(&error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Takes over what a connection says after what was `told` by it; false when that cannot be.
    fn take_next(&mut self, told: &mut AssignmentSet, next: AssignmentSet) -> bool {
        let (since, generation) = (next.since, told.generation);
        let Some(set) = told.followed_by(next) else {
            tracing::warn!(%generation, ?since, "asking for all assignments: a change is not one of these");
            return false;
        };
        told.clone_from(&set);
        if let Err(error) = self.take_over(set) {
            tracing::warn!(message = chain(&error), "cannot take assignments over");
            return false;
        }
        true
    }

    /// Makes the actors follow a set of assignments, after it is on disk.
    fn take_over(&mut self, set: AssignmentSet) -> Result<(), NodeError> {
        if set.hand_over {
            self.hand_over(set.location_epoch);
            return Ok(());
        }
        let place = (set.location_epoch, set.generation);
        if place < self.place {
            let (epoch, generation) = self.place;
            tracing::warn!(
                %epoch, %generation, their_epoch = %set.location_epoch, theirs = %set.generation,
                "refusing an older set of assignments"
            );
            return Ok(());
        }
        self.node.ingresses.send_if_modified(|known| {
            let differs = *known != set.ingresses;
            known.clone_from(&set.ingresses);
            differs
        });
        self.node.reach.want(set.reach.clone());
        self.actors.retain(|_, running| !running.task.is_finished());
        let named: BTreeSet<_> = set.assignments.iter().map(|a| a.instance.clone()).collect();
        // What could not be taken over has an entry without an actor.
        for instance in self.node.board.now().keys() {
            if !named.contains(instance) && !self.actors.contains_key(instance) {
                self.node.board.remove(instance);
            }
        }
        if place > self.place || !self.carries_out(&set) {
            // Off the async workers, which other actors need meanwhile.
            let saved = tokio::task::block_in_place(|| {
                self.node.disk.save_assignments(place, &set.assignments)
            });
            if let Err(error) = saved {
                self.show_why_not(&set, &error);
                return Err(error);
            }
            self.place = place;
        }
        for assignment in set.assignments {
            match self.actors.get(&assignment.instance) {
                Some(running) => {
                    let wish = Wish::Carry(Box::new(Assignment::clone(&assignment)));
                    running.wish.send_if_modified(|before| before.replace(wish));
                }
                None => self.spawn(&assignment, None),
            }
        }
        for (instance, running) in &self.actors {
            if !named.contains(instance) {
                running.wish.send_if_modified(|wish| wish.replace(Wish::Remove));
            }
        }
        self.carried.send_replace(Carried {
            location_epoch: set.location_epoch,
            acknowledged: Some(set.generation),
            handed_over: None,
        });
        Ok(())
    }

    /// Tells a location that lost its store what is carried out here, until it says what should be.
    fn hand_over(&self, to: LocationEpoch) {
        let (epoch, _) = self.place;
        if to <= epoch {
            tracing::warn!(%epoch, theirs = %to, "handing nothing over to an earlier life of the location");
            return;
        }
        let carried = self.actors.values().filter_map(|running| match &*running.wish.borrow() {
            Wish::Carry(assignment) => Some(Arc::new((**assignment).clone())),
            Wish::Remove => None,
        });
        let assignments: Vec<_> = carried.collect();
        let count = assignments.len();
        tracing::info!(%epoch, %to, count, "the location lost its store: handing over what runs here");
        let handed_over = Some(HandedOver { to, assignments });
        self.carried.send_modify(|carried| carried.handed_over = handed_over);
    }

    /// Whether there is an actor for every assignment of a set, with the wish for just that.
    fn carries_out(&self, set: &AssignmentSet) -> bool {
        set.assignments.iter().all(|assignment| {
            self.actors.get(&assignment.instance).is_some_and(|running| {
                matches!(&*running.wish.borrow(), Wish::Carry(carried) if **carried == **assignment)
            })
        })
    }

    /// Tells of assignments that could not be taken over, which have no actor that would.
    fn show_why_not(&self, set: &AssignmentSet, error: &NodeError) {
        let new = |assignment: &&Arc<Assignment>| !self.actors.contains_key(&assignment.instance);
        for assignment in set.assignments.iter().filter(new) {
            let (instance, generation) = (assignment.instance.clone(), assignment.generation);
            let mut observed = ObservedInstance::pending(instance, generation);
            observed.note = Some(chain(error));
            self.node.board.put(&observed);
        }
    }

    async fn end_everything(&mut self) {
        for running in self.actors.values() {
            running.wish.send_replace(Wish::Remove);
        }
        for (instance, running) in std::mem::take(&mut self.actors) {
            if let Err(error) = running.task.await {
                tracing::error!(%instance, %error, "the actor of an instance failed");
            }
        }
    }
}

fn log_broken(error: &CallError) {
    tracing::debug!(error = error as &dyn std::error::Error, "no assignments for now");
}

/// Removes what is left of an instance whose assignment is gone.
fn remove_leftover(node: &Node, dir: &Path) -> Result<(), String> {
    node.layers.remove(dir).map_err(|error| chain(&error))?;
    node.layers.release(dir).map_err(|error| chain(&error))?;
    node.disk.remove_leftover(dir).map_err(|error| chain(&error))
}

/// Unmounts the file systems whose containers are gone.
fn unmount_leftovers(node: &Node, adopted: &BTreeMap<InstanceId, Adopted>) {
    let used: BTreeSet<PathBuf> = adopted
        .iter()
        .filter(|(_, found)| matches!(found.state, AdoptedState::Running(_)))
        .map(|(id, _)| node.disk.rootfs(id))
        .collect();
    let mounts = match longshore_image::mount::mounts_under(node.disk.mounts()) {
        Ok(mounts) => mounts,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot list mounts");
            return;
        }
    };
    for mount in mounts.into_iter().filter(|mount| !used.contains(mount)) {
        if let Err(error) = longshore_image::mount::unmount_rootfs(&mount) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(mount = %mount.display(), error, "cannot unmount a leftover");
        }
    }
}
