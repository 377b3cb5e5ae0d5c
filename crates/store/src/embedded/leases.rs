//! When each lease runs out. In memory only: a restart gives every lease its full time again, since
//! its holder could not renew it while the store was down.
//!
//! Time is the monotonic clock, which does not run while the machine sleeps: a lease never ends
//! early because a machine was suspended.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::key_value::LeaseId;

/// The leases that are running.
#[derive(Debug, Default)]
pub struct LeaseClock {
    leases: HashMap<LeaseId, Lease>,
    /// The same leases by when they run out, for finding the next one.
    by_deadline: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl LeaseClock {
    /// Starts a lease at `now`.
    pub fn start(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let deadline = now + ttl;
        if let Some(old) = self.leases.insert(id, Lease { ttl, deadline }) {
            self.by_deadline.remove(&(old.deadline, id));
        }
        self.by_deadline.insert((deadline, id));
    }

    /// Starts a lease's time anew; whether it was still running at `now`.
    pub fn renew(&mut self, id: LeaseId, now: Instant) -> bool {
        match self.leases.get(&id) {
            Some(lease) if now < lease.deadline => {
                let ttl = lease.ttl;
                self.start(id, ttl, now);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Forgets a lease.
    pub fn end(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.by_deadline.remove(&(lease.deadline, id));
        }
    }

    /// When the first lease runs out.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// The leases that have run out at `now`, which are forgotten; earliest first.
    pub fn take_expired(&mut self, now: Instant) -> Vec<LeaseId> {
        let mut expired = Vec::new();
        while let Some(&(deadline, id)) = self.by_deadline.first()
            && deadline <= now
        {
            self.end(id);
            expired.push(id);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn second(start: Instant, n: u64) -> Instant {
        start + Duration::from_secs(n)
    }

    #[test]
    fn a_lease_runs_out_its_time_after_the_last_renewal() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        let (a, b) = (LeaseId(1), LeaseId(2));
        clock.start(a, TTL, start);
        clock.start(b, TTL, second(start, 1));
        assert_eq!(clock.next_deadline(), Some(second(start, 10)));
        assert!(clock.renew(a, second(start, 9)));
        assert_eq!(clock.next_deadline(), Some(second(start, 11)));
        assert_eq!(clock.take_expired(second(start, 10)), []);
        assert_eq!(clock.take_expired(second(start, 18)), [b]);
        assert_eq!(clock.take_expired(second(start, 19)), [a]);
        assert_eq!(clock.next_deadline(), None);
    }

    #[test]
    fn a_lease_past_its_time_is_not_renewed_even_before_it_is_collected() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        clock.start(LeaseId(1), TTL, start);
        assert!(!clock.renew(LeaseId(1), second(start, 10)));
        assert!(!clock.renew(LeaseId(2), start));
        assert_eq!(clock.take_expired(second(start, 10)), [LeaseId(1)]);
    }

    #[test]
    fn an_ended_lease_does_not_expire() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        clock.start(LeaseId(1), TTL, start);
        clock.end(LeaseId(1));
        clock.end(LeaseId(1));
        assert_eq!(clock.take_expired(second(start, 99)), []);
    }
}
