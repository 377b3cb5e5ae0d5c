use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is done at once: in all, and for one client.
pub(super) struct Budget {
    limit: usize,
    limit_per_client: usize,
    underway: Mutex<Underway>,
}

#[derive(Default)]
struct Underway {
    n_total: usize,
    n_by_client: HashMap<Ipv4Addr, usize>,
}

/// The right to do one thing for a client, until dropped.
pub(super) struct Permit {
    budget: Arc<Budget>,
    client: Ipv4Addr,
}

impl Budget {
    pub(super) fn new(limit: usize, limit_per_client: usize) -> Arc<Self> {
        Arc::new(Self { limit, limit_per_client, underway: Mutex::default() })
    }

    /// A permit, unless the client or all together have as many as there are.
    pub(super) fn try_acquire(self: &Arc<Self>, client: Ipv4Addr) -> Option<Permit> {
        let mut underway = self.underway();
        let n_of_client = underway.n_by_client.get(&client).copied().unwrap_or_default();
        if underway.n_total >= self.limit || n_of_client >= self.limit_per_client {
            return None;
        }
        underway.n_total += 1;
        underway.n_by_client.insert(client, n_of_client + 1);
        Some(Permit { budget: Arc::clone(self), client })
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut underway = self.budget.underway();
        underway.n_total -= 1;
        if let Some(n_of_client) = underway.n_by_client.get_mut(&self.client) {
            *n_of_client -= 1;
            if *n_of_client == 0 {
                underway.n_by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_what_is_for_all() {
        let [a, b] = [Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(100, 64, 0, 3)];
        let budget = Budget::new(3, 2);
        let first = budget.try_acquire(a).unwrap();
        let _second = budget.try_acquire(a).unwrap();
        assert!(budget.try_acquire(a).is_none());
        let _third = budget.try_acquire(b).unwrap();
        assert!(budget.try_acquire(b).is_none(), "three are all there are");
        drop(first);
        assert!(budget.try_acquire(b).is_some());
        assert!(budget.try_acquire(a).is_some());
    }
}
