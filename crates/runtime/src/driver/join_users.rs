//! The user namespace of a container, joined by a process of an `exec`.
//!
//! libcontainer 0.7 joins every namespace of the container but this one, so this happens in the
//! child, when it is in all others. Until then the process is the container's root as the machine
//! sees it, without any capability: a plain user of the machine, to which the namespace belongs, and
//! that gives it the right to join. Were it the machine's root instead, a process inside would for a
//! moment have that beside it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde_json::{Value, json};

use super::DriverProblem;
use crate::capabilities::bound;
use crate::oci;
use crate::spec::UserNamespace;
use crate::user::ResolvedUser;

#[derive(Clone)]
pub(super) struct JoinUsers {
    namespace: Rc<OwnedFd>,
    owner: u32,
    user: ResolvedUser,
}

impl JoinUsers {
    pub fn open(users: &UserNamespace, user: &ResolvedUser) -> Result<Self, DriverProblem> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(&users.path, flags, Mode::empty()).map_err(|errno| {
            DriverProblem::Prepare { path: users.path.clone(), source: errno.into() }
        })?;
        Ok(Self { namespace: Rc::new(namespace), owner: users.ids.first(), user: user.clone() })
    }

    /// The OCI `process` for the way until [`JoinUsers::join`].
    pub fn process_before(&self, process: &Value) -> Value {
        let mut process = process.clone();
        for (key, value) in [("uid", json!(self.owner)), ("gid", json!(self.owner))] {
            process["user"][key] = value;
        }
        process["user"]["additionalGids"] = json!([self.owner]);
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            process["capabilities"][set] = json!([]);
        }
        process
    }

    /// Joins, and becomes the user inside with the capabilities that are granted there, instead of
    /// all that whoever joins gets.
    pub fn join(&self) -> io::Result<()> {
        nix::sched::setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWUSER)?;
        bound(CapabilitySet::from_bits_retain(oci::capability_bits()))?;
        let groups: Vec<Gid> =
            self.user.additional_gids.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        let granted = CapabilitySet::from_bits_retain(oci::effective_bits(&self.user));
        let sets = CapabilitySets {
            effective: granted,
            permitted: granted,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets)?;
        Ok(())
    }
}
