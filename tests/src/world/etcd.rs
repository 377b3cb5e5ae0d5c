//! The etcd of a world's control plane, on the machine of that.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_store::conformance::EtcdServer;
use tempfile::TempDir;

use crate::process::on_network;
use crate::wait::eventually;

const N_MEMBERS: usize = 3;

/// Three members. What they keep is beside what the world does, which may be on a disk that is full.
pub(super) struct Etcd {
    members: Mutex<Vec<EtcdServer>>,
    _dir: TempDir,
}

impl Etcd {
    /// Where they will be.
    pub(super) fn plan() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let members = EtcdServer::plan(dir.path(), N_MEMBERS, None)?;
        Ok(Self { members: Mutex::new(members), _dir: dir })
    }

    /// What the control plane is told of it.
    pub(super) fn store(&self) -> String {
        format!("{}/longshore", EtcdServer::address(&self.members()))
    }

    /// Starts them on a machine.
    pub(super) fn launch(&self, network: &File) -> Result<()> {
        let members = &mut *self.members();
        on_network(network, || Ok(EtcdServer::launch(members)?))
    }

    /// Kills the one that leads, as with its machine, and starts it again with what it has.
    pub(super) fn kill_leader(&self, network: &File, away: Duration) -> Result<()> {
        let members = &mut *self.members();
        let leads = |member: &EtcdServer| member.leads().unwrap_or(false);
        on_network(network, || {
            let leader = eventually("a member leads", || Ok(members.iter().position(leads)))?;
            let leader = members.get_mut(leader).context("it is one of them")?;
            leader.kill();
            std::thread::sleep(away);
            Ok(leader.start()?)
        })
    }

    fn members(&self) -> MutexGuard<'_, Vec<EtcdServer>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
