//! Locks between processes, and between tasks that act on the same instance.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_types::InstanceId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(10);

/// Locks a file for this process; nothing when another process held it all the time.
pub(crate) async fn exclusive(mut file: File, limit: Duration) -> io::Result<Option<Flock<File>>> {
    let deadline = Instant::now() + limit;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
            Err((_, errno)) => return Err(errno.into()),
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One lock per instance: what is done to one instance happens in order, and never waits for what
/// is done to another.
#[derive(Debug, Default)]
pub(crate) struct InstanceLocks {
    locks: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
}

impl InstanceLocks {
    pub(crate) async fn lock(&self, instance: &InstanceId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // A lock that only the map knows is held and awaited by nobody.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(instance.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_instance_waits_only_for_itself() {
        let locks = InstanceLocks::default();
        let [a, b] = ["a-00000000", "b-00000000"].map(|id| id.parse::<InstanceId>().unwrap());
        let held = locks.lock(&a).await;
        drop(locks.lock(&b).await);
        let mut waiting = Box::pin(locks.lock(&a));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(held);
        waiting.await;
    }
}
