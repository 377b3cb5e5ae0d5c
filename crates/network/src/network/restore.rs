//! Putting back what others took away, and taking everything away.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use longshore_types::{InstanceId, IpNet};

use super::{Network, ReconcileError, RemoveError, RulesWritten, Shared};
use crate::layout::{Slot, gateway_link};
use crate::namespace;
use crate::nft::NftError;
use crate::slots::{SlotError, ensure_gateway};
use crate::subnet::{claim_metric, ensure_forgotten};
use crate::{iptables, ruleset, sysctl};

impl Network {
    /// Puts back what others have changed: packet rules that were flushed, links and routes that
    /// were deleted, forwarding that was turned off, a firewall that began to drop (docker may
    /// start later than the agent), resolvers that moved. Made to be called on a timer.
    ///
    /// # Errors
    ///
    /// The first thing that the kernel refuses.
    pub async fn reconcile(&self) -> Result<(), ReconcileError> {
        self.shared.upstreams.refresh().map_err(ReconcileError::Resolvers)?;
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
        self.shared.restore().await
    }

    /// Removes everything of this agent: all instances' networks, links, routes, packet rules and
    /// files. Forwarding stays on, since others may have come to rely on it.
    ///
    /// # Errors
    ///
    /// The first thing that the kernel refuses; open the network again to retry.
    pub async fn remove_all(self) -> Result<(), RemoveError> {
        let shared = &self.shared;
        shared.stop.cancel();
        // What is underway is finished first, so that nothing appears afterwards.
        shared.work.close();
        shared.work.wait().await;
        self.retain(&BTreeSet::new()).await?;
        let ready: Vec<Slot> = shared.instances().ready.drain(..).collect();
        for slot in ready {
            shared.maker.ensure_removed(slot).await?;
        }
        shared.remove_shared().await
    }
}

impl Shared {
    /// Makes what is missing of the rules, the gateway, the claim and the links of instances.
    pub(super) async fn restore(&self) -> Result<(), ReconcileError> {
        // Rules before links: nothing is ever connected without them.
        self.restore_rules().await?;
        let layout = &self.maker.layout;
        let netlink = &self.maker.netlink;
        let gateway = gateway_link(layout.agent);
        ensure_gateway(netlink, layout, &gateway, layout.gateway()).await?;
        netlink.ensure_claim(layout.subnet, claim_metric(layout.agent)).await?;
        self.restore_links().await?;
        iptables::ensure_accepted(layout).await?;
        Ok(())
    }

    async fn restore_rules(&self) -> Result<(), NftError> {
        let mut rules = self.rules.lock().await;
        let table = ruleset::table_name(self.maker.layout.agent);
        let listed = self.nft.list_table(&table).await?.map(RulesWritten::As);
        if *rules != RulesWritten::Changed && listed.as_ref() == Some(&*rules) {
            return Ok(());
        }
        let egress: Vec<_> = {
            let instances = self.instances();
            let restricted = instances.attached.values().filter(|one| !one.egress.is_empty());
            restricted.map(|one| (one.slot, one.egress.clone())).collect()
        };
        let egress = egress.iter().map(|(slot, egress)| (*slot, egress.as_slice()));
        let script = ruleset::replace_table(&self.maker.layout, egress);
        self.nft.apply("replace the table of the agent", &script).await?;
        let listed = self.nft.list_table(&table).await?;
        *rules = listed.map_or(RulesWritten::Changed, RulesWritten::As);
        Ok(())
    }

    /// Connects again every slot whose link or route is gone.
    async fn restore_links(&self) -> Result<(), ReconcileError> {
        let layout = &self.maker.layout;
        let routes = self.maker.netlink.routes().await?;
        let over_links = routes.iter().filter(|route| route.link.is_some());
        let routed: BTreeSet<IpNet> = over_links.map(|route| route.destination).collect();
        let is_cut_off = |slot: Slot| {
            let own = IpNet::new(layout.address(slot), 32);
            own.is_none_or(|own| !routed.contains(&own))
        };
        self.restore_ready(is_cut_off).await?;
        let cut_off: Vec<(InstanceId, Slot)> = {
            let instances = self.instances();
            let all = instances.attached.iter().map(|(instance, one)| (instance, one.slot));
            all.filter(|(_, slot)| is_cut_off(*slot)).map(|(id, slot)| (id.clone(), slot)).collect()
        };
        for (instance, slot) in cut_off {
            let _lock = self.locks.lock(&instance).await;
            let now = self.instances().attached.get(&instance).map(|one| one.slot);
            // Unless it was detached in the meantime, or its namespace was taken from it as well,
            // which only a new attach can mend.
            if now == Some(slot) && namespace::is_mounted(&layout.netns(slot)) {
                tracing::warn!(%instance, "connecting an instance whose link or route was gone");
                self.maker.ensure_plugged(slot).await?;
            }
        }
        Ok(())
    }

    /// Connects again what is ready for instances to come.
    async fn restore_ready(&self, is_cut_off: impl Fn(Slot) -> bool) -> Result<(), SlotError> {
        let cut_off: Vec<Slot> = {
            let mut instances = self.instances();
            let (cut_off, whole) = instances.ready.drain(..).partition(|slot| is_cut_off(*slot));
            instances.ready = whole;
            Vec::from(cut_off)
        };
        for slot in cut_off {
            match self.maker.ensure_plugged(slot).await {
                Ok(()) => self.instances().ready.push_back(slot),
                Err(error) => {
                    self.discard(slot).await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Removes what no instance has for itself.
    async fn remove_shared(&self) -> Result<(), RemoveError> {
        let layout = &self.maker.layout;
        let netlink = &self.maker.netlink;
        iptables::ensure_removed(layout.agent).await?;
        netlink.ensure_no_link(&gateway_link(layout.agent)).await?;
        self.nft.apply("remove a table", &ruleset::remove_table(layout.agent)).await?;
        netlink.ensure_no_claim(layout.subnet, claim_metric(layout.agent)).await?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| RemoveError::File { path, source }
        };
        ensure_forgotten(&self.state_dir).map_err(failed(&self.state_dir))?;
        for dir in [layout.netns_dir(), layout.users_dir(), layout.records_dir()] {
            ensure_no_dir(&dir).map_err(failed(&dir))?;
        }
        Ok(())
    }
}

fn ensure_no_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
