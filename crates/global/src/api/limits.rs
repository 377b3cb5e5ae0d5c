//! How often somebody may ask, so that one client in a loop leaves the API to the others.
//!
//! Each token has a bucket of requests that fills at a fixed rate; who sends no valid token has one by
//! address, and a small one, which slows down whoever guesses.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderValue, header};
use longshore_api::{Problem, ProblemCode};
use longshore_types::AppName;

type Buckets<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// How many seconds' worth of requests may come at once.
const BURST_SECONDS: u32 = 5;
/// What part of a token's rate an address has for requests without a valid token.
const STRANGERS_PART: u32 = 10;

/// The buckets.
#[derive(Debug)]
pub struct Limits {
    tokens: Buckets<AppName>,
    strangers: Buckets<IpAddr>,
    clock: DefaultClock,
}

/// Somebody asks too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// In how many seconds there is room again, rounded up.
    pub retry_after: u64,
}

impl Limits {
    /// With so many requests a second for each token.
    pub fn new(rate: NonZeroU32) -> Self {
        let quota = |rate: NonZeroU32| {
            let burst = rate.saturating_mul(NonZeroU32::new(BURST_SECONDS).unwrap_or(rate));
            Quota::per_second(rate).allow_burst(burst)
        };
        let strangers = NonZeroU32::new(rate.get() / STRANGERS_PART).unwrap_or(NonZeroU32::MIN);
        Self {
            tokens: RateLimiter::hashmap(quota(rate)),
            strangers: RateLimiter::hashmap(quota(strangers)),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request by a token.
    pub fn count(&self, token: &AppName) -> Result<(), TooMany> {
        self.tokens.check_key(token).map_err(|until| self.too_many(until))
    }

    /// Counts a request from an address without a token that is known.
    pub fn count_stranger(&self, from: IpAddr) -> Result<(), TooMany> {
        self.strangers.check_key(&from).map_err(|until| self.too_many(until))
    }

    fn too_many(
        &self,
        until: governor::NotUntil<<DefaultClock as governor::clock::Clock>::Instant>,
    ) -> TooMany {
        let wait = until.wait_time_from(self.clock.now());
        TooMany { retry_after: wait.as_secs() + u64::from(wait.subsec_nanos() > 0) }
    }

    /// Forgets those who have not asked lately.
    pub fn forget_idle(&self) {
        self.tokens.retain_recent();
        self.strangers.retain_recent();
    }
}

impl TooMany {
    /// What is answered.
    pub fn problem(self) -> Problem {
        let detail = format!("too many requests; there is room again in {} s", self.retry_after);
        Problem::new(ProblemCode::TooManyRequests, detail)
    }

    /// The header that says when to come back.
    pub fn header(self) -> (header::HeaderName, HeaderValue) {
        (header::RETRY_AFTER, HeaderValue::from(self.retry_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_of_one_token_and_tells_when_to_come_back() {
        let limits = Limits::new(NonZeroU32::new(2).unwrap());
        let (busy, other) = ("busy".parse().unwrap(), "other".parse().unwrap());
        let outcomes: Vec<_> = (0..100).map(|_| limits.count(&busy)).collect();
        assert_eq!(outcomes[..10], [Ok(()); 10]);
        // The bucket fills meanwhile, but not by ninety.
        assert_eq!(outcomes[99], Err(TooMany { retry_after: 1 }));
        assert_eq!(limits.count(&other), Ok(()));
        let from = IpAddr::from([10, 0, 0, 1]);
        let passed = (0..100).filter(|_| limits.count_stranger(from).is_ok()).count();
        assert!((5..100).contains(&passed), "{passed}");
        limits.forget_idle();
        assert!(limits.count_stranger(from).is_err(), "who asked lately is not forgotten");
    }
}
