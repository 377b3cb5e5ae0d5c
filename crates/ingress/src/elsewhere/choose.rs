//! Which location gets a request: a pure decision over what is known of each.

use std::time::Duration;

/// What a way counts as that was not measured yet: farther than most of a continent, nearer than an ocean and
/// back. The map's order decides among such.
const UNMEASURED: Duration = Duration::from_millis(120);
/// A round trip counts as this at least: below it, what an instance takes for an answer is all that matters.
const SHORTEST: Duration = Duration::from_millis(1);
/// So many requests under way for each instance of a location double its distance.
const DOUBLING_LOAD: f64 = 16.0;

/// A location as a choice sees it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// The smoothed round trip, once it was measured.
    pub round_trip: Option<Duration>,
    /// Requests under way there for each of its instances.
    pub load: f64,
    /// It takes no connection, or refused a request for the same app a moment ago.
    pub passed_over: bool,
    /// This request was not refused by it already.
    pub untried: bool,
}

impl Candidate {
    /// The distance in seconds, made longer by load: a location at half the distance gets requests until
    /// it has as much to do as doubles that.
    fn cost(&self) -> f64 {
        let distance = self.round_trip.unwrap_or(UNMEASURED).max(SHORTEST);
        distance.as_secs_f64() * (1.0 + self.load / DOUBLING_LOAD)
    }
}

/// Chooses among locations, given the nearest on the map first; none when all were tried. Those that are passed
/// over are chosen only when there is no other.
pub(crate) fn choose(candidates: &[Candidate]) -> Option<usize> {
    let untried = || (0..candidates.len()).filter(|idx| candidates[*idx].untried);
    let cheapest = |among: &mut dyn Iterator<Item = usize>| {
        // The first of equals, so the map decides.
        among.min_by(|a, b| candidates[*a].cost().total_cmp(&candidates[*b].cost()))
    };
    cheapest(&mut untried().filter(|idx| !candidates[*idx].passed_over))
        .or_else(|| cheapest(&mut untried()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Candidate {
        let round_trip = Some(Duration::from_millis(millis));
        Candidate { round_trip, load: 0.0, passed_over: false, untried: true }
    }

    #[test]
    fn the_nearest_by_measure_is_chosen_and_the_map_where_nothing_was_measured() {
        assert_eq!(choose(&[at(80), at(20), at(50)]), Some(1));
        let unknown = Candidate { round_trip: None, ..at(0) };
        assert_eq!(choose(&[unknown.clone(), unknown.clone()]), Some(0));
        assert_eq!(choose(&[unknown.clone(), at(30)]), Some(1));
        assert_eq!(choose(&[at(300), unknown]), Some(1));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn load_makes_a_location_farther() {
        let loaded = |millis, load| Candidate { load, ..at(millis) };
        assert_eq!(choose(&[loaded(10, 15.0), at(20)]), Some(0));
        assert_eq!(choose(&[loaded(10, 17.0), at(20)]), Some(1));
        // Of two that are equally near each gets half.
        let mut loads = [0.0, 0.0];
        for _ in 0..100 {
            let idx = choose(&loads.map(|load| loaded(10, load))).unwrap();
            loads[idx] += 1.0;
        }
        assert_eq!(loads, [50.0, 50.0]);
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let round_trip = proptest::option::of(0..400_u64);
        (round_trip, 0..100_u32, any::<bool>(), any::<bool>()).prop_map(
            |(millis, load, passed_over, untried)| Candidate {
                round_trip: millis.map(Duration::from_millis),
                load: f64::from(load),
                passed_over,
                untried,
            },
        )
    }

    proptest! {
        #[test]
        fn a_choice_is_allowed_and_the_best_and_always_the_same(
            candidates in proptest::collection::vec(any_candidate(), 0..9),
        ) {
            let chosen = choose(&candidates);
            prop_assert_eq!(chosen, choose(&candidates.clone()));
            prop_assert_eq!(chosen.is_some(), candidates.iter().any(|one| one.untried));
            let Some(chosen) = chosen.map(|idx| &candidates[idx]) else { return Ok(()) };
            prop_assert!(chosen.untried);
            for other in candidates.iter().filter(|one| one.untried) {
                prop_assert!(other.passed_over || !chosen.passed_over);
                let comparable = other.passed_over == chosen.passed_over;
                prop_assert!(!comparable || chosen.cost() <= other.cost());
            }
        }

        #[test]
        fn nearer_and_with_less_to_do_is_never_worse(
            candidates in proptest::collection::vec(any_candidate(), 1..9),
            less in 0.0..1.0_f64,
        ) {
            let Some(chosen) = choose(&candidates) else { return Ok(()) };
            let mut better = candidates.clone();
            let distance = better[chosen].round_trip.unwrap_or(UNMEASURED);
            better[chosen].round_trip = Some(distance.mul_f64(less));
            better[chosen].load *= less;
            prop_assert_eq!(choose(&better), Some(chosen));
        }
    }
}
