//! Attaching and detaching instances.
//!
//! Namespaces and links are made ahead of need, because the kernel takes milliseconds for them and
//! serialises them behind one lock. Attaching then is choosing a ready slot, writing two files in
//! memory and, for an instance with an egress list, one transaction of packet rules.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use longshore_types::{EgressRule, InstanceId};
use tokio::task::JoinHandle;

use super::{AttachError, Attached, Attachment, DetachError, Network, RulesWritten, Shared};
use crate::layout::Slot;
use crate::nft::NftError;
use crate::record::{Record, ensure_no_file};
use crate::ruleset;
use crate::slots::Owner;

/// How many slots are kept ready, with a user namespace each. Each costs some 100 KiB of kernel memory; a burst larger than
/// this waits some milliseconds for each one more.
const N_READY: usize = 4;

/// What came of a task. A panic in it goes on here; it is cancelled by a runtime that ends alone, and
/// with it ends whoever waits.
async fn outcome<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

impl Network {
    /// Gives an instance its network: a namespace that reaches the public internet, the resolver
    /// and what `egress` names, and that belongs to a user namespace of the instance's own.
    /// Repeated, it gives the same network, whole again, with the new egress list; not to be called
    /// while a container runs in it, which may have arranged it in its own way.
    ///
    /// Once called it completes, even when the caller is cancelled.
    ///
    /// # Errors
    ///
    /// When the addresses are used up or the kernel refuses; nothing is left of the attempt.
    pub async fn attach(
        &self,
        instance: &InstanceId,
        egress: &[EgressRule],
    ) -> Result<Attachment, AttachError> {
        self.attach_to(Owner::Instance, instance, egress).await
    }

    /// Like [`Network::attach`], for an instance that has no user namespace of its own. It is made
    /// when it is asked for: such instances are the exception.
    ///
    /// # Errors
    ///
    /// As for [`Network::attach`].
    pub async fn attach_without_users(
        &self,
        instance: &InstanceId,
        egress: &[EgressRule],
    ) -> Result<Attachment, AttachError> {
        self.attach_to(Owner::Machine, instance, egress).await
    }

    async fn attach_to(
        &self,
        owner: Owner,
        instance: &InstanceId,
        egress: &[EgressRule],
    ) -> Result<Attachment, AttachError> {
        let shared = Arc::clone(&self.shared);
        let (instance, egress) = (instance.clone(), egress.to_vec());
        let attaching = self.shared.work.spawn(async move {
            let attached = shared.attach(owner, &instance, egress).await;
            Shared::refill(&shared);
            attached
        });
        outcome(attaching).await
    }

    /// Takes the network of an instance away, if it has one: its namespace loses its link at once,
    /// and is gone when its last process is.
    ///
    /// Once called it completes, even when the caller is cancelled.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. The instance stays known, so that the next attempt finishes.
    pub async fn detach(&self, instance: &InstanceId) -> Result<(), DetachError> {
        let shared = Arc::clone(&self.shared);
        let instance = instance.clone();
        let detaching = self.shared.work.spawn(async move { shared.detach(&instance).await });
        outcome(detaching).await
    }

    /// Detaches every instance that is not in `keep`, and says which these were.
    ///
    /// # Errors
    ///
    /// The first refusal of the kernel; all other instances were detached all the same.
    pub async fn retain(
        &self,
        keep: &BTreeSet<InstanceId>,
    ) -> Result<Vec<InstanceId>, DetachError> {
        let mut gone = Vec::new();
        let mut first_error = None;
        for instance in self.instances().difference(keep) {
            match self.detach(instance).await {
                Ok(()) => gone.push(instance.clone()),
                Err(error) => {
                    tracing::warn!(%instance, %error, "an instance kept its network");
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(gone), Err)
    }
}

impl Shared {
    async fn attach(
        &self,
        owner: Owner,
        instance: &InstanceId,
        egress: Vec<EgressRule>,
    ) -> Result<Attachment, AttachError> {
        let _lock = self.locks.lock(instance).await;
        let known = self.instances().attached.get(instance).cloned();
        if let Some(Attached { slot, egress: current, .. }) = known
            && self.maker.owner(slot) == Some(owner)
        {
            if current != egress {
                let mut rules = self.rules.lock().await;
                self.set_egress(&mut rules, slot, &egress).await?;
                self.commit(instance, Attached { slot, owner, egress })?;
            }
            // Who was in there may have taken it apart, as gVisor does, whose kernel has the address then.
            self.maker.ensure_plugged(slot).await?;
            return Ok(self.attachment(instance, slot, owner));
        }
        // Nothing, unless somebody unmounted a namespace.
        self.detach_locked(instance).await?;
        let slot = self.take_slot(owner).await?;
        match self.give(instance, Attached { slot, owner, egress }).await {
            Ok(()) => Ok(self.attachment(instance, slot, owner)),
            Err(error) => {
                self.discard(slot).await;
                Err(error)
            }
        }
    }

    async fn give(&self, instance: &InstanceId, attached: Attached) -> Result<(), AttachError> {
        self.name(instance, attached.slot, attached.owner)
            .map_err(|source| AttachError::Name { instance: instance.clone(), source })?;
        if attached.egress.is_empty() {
            return self.commit(instance, attached);
        }
        let mut rules = self.rules.lock().await;
        self.set_egress(&mut rules, attached.slot, &attached.egress).await?;
        self.commit(instance, attached)
    }

    /// Points the instance's paths to the namespaces of its slot.
    fn name(&self, instance: &InstanceId, slot: Slot, owner: Owner) -> io::Result<()> {
        let layout = &self.maker.layout;
        if owner == Owner::Instance {
            point(&layout.instance_users(instance), &layout.users(slot))?;
        }
        point(&layout.instance_netns(instance), &layout.netns(slot))
    }

    /// From here on the slot is the instance's.
    fn commit(&self, instance: &InstanceId, attached: Attached) -> Result<(), AttachError> {
        let address = self.maker.layout.address(attached.slot);
        self.records.write(instance, &Record { address, egress: attached.egress.clone() })?;
        self.instances().attached.insert(instance.clone(), attached);
        Ok(())
    }

    pub(super) async fn detach(&self, instance: &InstanceId) -> Result<(), DetachError> {
        let _lock = self.locks.lock(instance).await;
        self.detach_locked(instance).await
    }

    async fn detach_locked(&self, instance: &InstanceId) -> Result<(), DetachError> {
        let Some(Attached { slot, egress, .. }) = self.instances().attached.get(instance).cloned()
        else {
            return Ok(());
        };
        self.maker.ensure_removed(slot).await?;
        let mut rules = None;
        if !egress.is_empty() {
            let rules = rules.insert(self.rules.lock().await);
            self.set_egress(rules, slot, &[]).await?;
        }
        ensure_no_file(&self.maker.layout.instance_netns(instance))?;
        ensure_no_file(&self.maker.layout.instance_users(instance))?;
        self.records.remove(instance)?;
        let mut instances = self.instances();
        instances.attached.remove(instance);
        instances.numbers.give_back(slot);
        Ok(())
    }

    /// The lock on the rules must be held until it is also known whose slot this is: a table that
    /// was put back in between would have the egress list of the moment before.
    async fn set_egress(
        &self,
        rules: &mut RulesWritten,
        slot: Slot,
        egress: &[EgressRule],
    ) -> Result<(), NftError> {
        *rules = RulesWritten::Changed;
        let script = ruleset::set_egress(&self.maker.layout, slot, egress);
        self.nft.apply("change an egress list", &script).await
    }

    /// A slot that is ready, or one that is made now.
    async fn take_slot(&self, owner: Owner) -> Result<Slot, AttachError> {
        let ready = match owner {
            Owner::Instance => self.instances().ready.pop_front(),
            Owner::Machine => None,
        };
        match ready {
            Some(slot) => Ok(slot),
            None => self.make_slot(owner).await,
        }
    }

    async fn make_slot(&self, owner: Owner) -> Result<Slot, AttachError> {
        let taken = self.instances().numbers.take();
        let subnet = self.maker.layout.subnet;
        let slot = taken.ok_or(AttachError::Full { subnet })?;
        let _permit = self.making.acquire().await.expect("the semaphore is never closed");
        match self.maker.make(slot, owner).await {
            Ok(()) => Ok(slot),
            Err(error) => {
                self.discard(slot).await;
                Err(error.into())
            }
        }
    }

    /// Removes what there is of a slot that is nobody's. One that resists stays out of use, and
    /// goes when the network is opened the next time.
    pub(super) async fn discard(&self, slot: Slot) {
        let removed = async {
            self.maker.ensure_removed(slot).await?;
            let mut rules = self.rules.lock().await;
            self.set_egress(&mut rules, slot, &[]).await.map_err(DetachError::from)
        };
        match removed.await {
            Ok(()) => self.instances().numbers.give_back(slot),
            Err(error) => {
                tracing::warn!(slot, error = &error as &dyn std::error::Error, "not removed")
            }
        }
    }

    /// Makes slots in the background until enough are ready.
    pub(super) fn refill(shared: &Arc<Self>) {
        let n_missing = {
            let mut instances = shared.instances();
            let n_missing = N_READY.saturating_sub(instances.ready.len() + instances.n_underway);
            instances.n_underway += n_missing;
            n_missing
        };
        for _ in 0..n_missing {
            let shared = Arc::clone(shared);
            let work = shared.work.clone();
            work.spawn(async move {
                let is_needed = !shared.stop.is_cancelled();
                let made = match is_needed {
                    true => Some(shared.make_slot(Owner::Instance).await),
                    false => None,
                };
                let mut instances = shared.instances();
                instances.n_underway -= 1;
                match made {
                    Some(Ok(slot)) => instances.ready.push_back(slot),
                    // The next attach makes its own slot, and fails with the reason if it must.
                    Some(Err(error)) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "no slot was made ahead of need");
                    }
                    None => {}
                }
            });
        }
    }
}

/// Makes `path` a symbolic link to `target`, which lies in the same directory.
fn point(path: &Path, target: &Path) -> io::Result<()> {
    let target = target.file_name().expect("the file of a slot has a name");
    match symlink(target, path) {
        // Left by an attempt that failed before it was recorded.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            symlink(target, path)
        }
        other => other,
    }
}
