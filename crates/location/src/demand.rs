//! How many requests for each app come in here, as the ingresses of this location count them.
//!
//! Of each app one number is kept: a sum in which a request counts half as much each [`HALF_LIFE`]. It is told as a rate,
//! by what the sum would be if as much had come in all the time since this process began; so a location that was
//! started again tells nearly the same as before after a minute, and nobody takes it for one that lost its users.
//! Nothing of it is stored. Rejected: counts by the minute, which is more to keep, and forgets all of a minute at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_api::links::{AppDemand, AppRef, AppRequests, Counted};

/// After this time a request counts half.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// A time that is shorter than this is taken for it: what the first requests say must not be multiplied.
const LEAST_TIME: Duration = Duration::from_secs(60);
/// Of so many apps a report tells at most, those with most requests.
const MOST_TOLD: usize = 1000;
const SECONDS_AN_HOUR: f64 = 3600.0;

/// What came in.
#[derive(Debug)]
pub struct Demand {
    began: Instant,
    sums: Mutex<BTreeMap<AppRef, Sum>>,
}

/// Requests, as they counted then.
#[derive(Debug, Clone, Copy)]
struct Sum {
    value: f64,
    at: Instant,
}

impl Sum {
    fn at(self, now: Instant) -> f64 {
        self.value * left(now.saturating_duration_since(self.at))
    }
}

/// What is left after some time of what counted one.
fn left(time: Duration) -> f64 {
    (-time.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
}

impl Demand {
    /// Nothing came in yet.
    pub fn since(began: Instant) -> Self {
        Self { began, sums: Mutex::default() }
    }

    /// Takes over what an ingress counted.
    pub fn note(&self, Counted { apps }: Counted, now: Instant) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for AppRequests { project, app, requests } in apps {
            let sum = sums.entry(AppRef { project, app }).or_insert(Sum { value: 0.0, at: now });
            *sum = Sum { value: sum.at(now) + requests as f64, at: now };
        }
    }

    /// How many come in an hour; of apps that have less than one, nothing, and they are forgotten.
    pub fn per_hour(&self, now: Instant) -> Vec<AppDemand> {
        let time = now.saturating_duration_since(self.began).max(LEAST_TIME);
        // So many seconds of the same rate are in a sum.
        let seconds = HALF_LIFE.as_secs_f64() / std::f64::consts::LN_2 * (1.0 - left(time));
        let rate = |sum: Sum| whole(sum.at(now) / seconds * SECONDS_AN_HOUR);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.retain(|_, sum| rate(*sum) > 0);
        let mut told: Vec<_> = sums
            .iter()
            .map(|(AppRef { project, app }, sum)| AppDemand {
                project: project.clone(),
                app: app.clone(),
                requests_per_hour: rate(*sum),
            })
            .collect();
        drop(sums);
        if told.len() > MOST_TOLD {
            told.sort_by_key(|one| std::cmp::Reverse(one.requests_per_hour));
            told.truncate(MOST_TOLD);
        }
        told
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative, and what is too much is the most there is"
)]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(app: &str, requests: u64) -> Counted {
        let app = app.parse().unwrap();
        Counted { apps: vec![AppRequests { project: Default::default(), app, requests }] }
    }

    fn told(demand: &Demand, now: Instant) -> Vec<(String, u64)> {
        let told = demand.per_hour(now).into_iter();
        told.map(|one| (one.app.to_string(), one.requests_per_hour)).collect()
    }

    #[test]
    fn the_same_rate_is_told_whenever_the_location_began() {
        let began = Instant::now();
        let demand = Demand::since(began);
        assert_eq!(told(&demand, began), []);
        for second in (0..7200).step_by(5) {
            let now = began + Duration::from_secs(second);
            demand.note(requests("web", 10), now);
            if second >= 60 {
                let rate = told(&demand, now)[0].1;
                assert!((6900..=8000).contains(&rate), "{rate} an hour after {second} s");
            }
        }
    }

    #[test]
    fn what_was_counts_less_and_less_and_is_forgotten() {
        let began = Instant::now();
        let demand = Demand::since(began);
        let now = began + 10 * HALF_LIFE;
        demand.note(requests("web", 1000), now);
        let first = told(&demand, now)[0].1;
        let later = told(&demand, now + HALF_LIFE)[0].1;
        assert!(first.abs_diff(2 * later) < first / 100, "{first} {later}");
        assert_eq!(told(&demand, now + 20 * HALF_LIFE), []);
        assert!(demand.sums.lock().unwrap().is_empty());
    }

    #[test]
    fn a_report_tells_of_those_apps_that_have_most() {
        let began = Instant::now();
        let demand = Demand::since(began);
        for idx in 0..MOST_TOLD as u64 + 10 {
            demand.note(requests(&format!("app-{idx}"), 1000 + idx), began);
        }
        let told = told(&demand, began);
        assert_eq!(told.len(), MOST_TOLD);
        assert!(told.iter().all(|(app, _)| app != "app-0"));
    }
}
