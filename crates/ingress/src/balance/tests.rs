use proptest::prelude::*;

use super::outlier::CONSECUTIVE;
use super::*;

fn candidate(outstanding: usize) -> Candidate {
    Candidate { outstanding, untried: true, aside: false, out_since: None, weight: 1.0 }
}

fn rng() -> fastrand::Rng {
    fastrand::Rng::with_seed(7)
}

/// How often each is picked of `n` picks, when each request ends at once.
fn shares(candidates: &[Candidate], n: usize) -> Vec<usize> {
    let mut rng = rng();
    let mut picked = vec![0; candidates.len()];
    (0..n).for_each(|_| picked[pick(candidates, &mut rng).unwrap()] += 1);
    picked
}

#[test]
fn a_share_grows_with_the_age_of_an_endpoint() {
    let window = Duration::from_secs(10);
    for (seconds, expected) in [(0, 0.1), (1, 0.1), (5, 0.5), (10, 1.0), (60, 1.0)] {
        assert_eq!(weight(Duration::from_secs(seconds), window), expected, "{seconds}");
    }
    assert_eq!(weight(Duration::ZERO, Duration::ZERO), 1.0, "without a slow start");

    let young = |weight| [candidate(0), candidate(0), Candidate { weight, ..candidate(0) }];
    let third = 10_000;
    for (weight, least, most) in [(0.1, 700, 1300), (0.5, 4200, 5800), (1.0, 9500, 10500)] {
        let got = shares(&young(weight), 3 * third)[2];
        assert!((least..=most).contains(&got), "{weight}: {got} of {third}");
    }
}

#[test]
fn of_many_requests_in_flight_a_young_endpoint_has_its_part() {
    let mut rng = rng();
    let mut candidates =
        [candidate(0), candidate(0), Candidate { weight: 0.25, ..candidate(0) }].to_vec();
    for _ in 0..900 {
        let idx = pick(&candidates, &mut rng).unwrap();
        candidates[idx].outstanding += 1;
    }
    let held: Vec<_> = candidates.iter().map(|one| one.outstanding).collect();
    assert!((95..=105).contains(&held[2]), "a quarter of 400: {held:?}");
    assert!(held[0].abs_diff(held[1]) <= 1, "{held:?}");
}

#[test]
fn where_all_are_new_nobody_is_spared() {
    let new = Candidate { weight: 0.1, ..candidate(0) };
    let mut candidates = vec![new; 3];
    let mut rng = rng();
    for _ in 0..30 {
        let idx = pick(&candidates, &mut rng).unwrap();
        candidates[idx].outstanding += 1;
    }
    assert!(candidates.iter().all(|one| one.outstanding == 10), "{candidates:?}");
}

#[test]
fn half_of_the_endpoints_at_most_are_left_out_those_that_were_ejected_first() {
    let now = Instant::now();
    let out = |seconds| {
        let since = now + Duration::from_secs(seconds);
        Candidate { out_since: Some(since), ..candidate(0) }
    };
    assert_eq!(left_out(&[out(1)]), [0; 0], "never the last");
    assert_eq!(left_out(&[out(2), out(1)]), [1]);
    assert_eq!(left_out(&[out(2), out(1), out(0)]), [2]);
    assert_eq!(left_out(&[out(2), candidate(0), out(1), candidate(0)]), [2, 0]);
    assert_eq!(shares(&[out(2), out(1)], 10), [10, 0]);
    // One that is left out still is better than one that takes no connections.
    let refuses = Candidate { aside: true, ..candidate(0) };
    assert_eq!(shares(&[out(1), refuses.clone()], 10), [10, 0]);
    let tried = |one: Candidate| Candidate { untried: false, ..one };
    assert_eq!(shares(&[tried(out(1)), refuses.clone()], 10), [0, 10]);
    assert_eq!(pick(&[tried(out(1)), tried(refuses)], &mut rng()), None);
}

#[test]
fn failures_in_a_row_eject_for_longer_each_time_and_good_times_are_remembered() {
    let mut now = Instant::now();
    let (mut record, times) = (Record::default(), Times::default());
    let fail = |record: &mut Record, now| {
        (1..CONSECUTIVE).for_each(|_| assert_eq!(record.note(Outcome::Failed, now, &times), None));
        record.note(Outcome::Failed, now, &times)
    };
    (1..CONSECUTIVE).for_each(|_| assert_eq!(record.note(Outcome::Failed, now, &times), None));
    record.note(Outcome::Answered, now, &times);
    assert_eq!(record.out_since(now), None, "an answer ends the row");

    for nth in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10] {
        let time = fail(&mut record, now).unwrap();
        assert_eq!(time, times.base * nth);
        assert_eq!(record.out_since(now), Some(now));
        assert_eq!(fail(&mut record, now), None, "what was under way changes nothing");
        now += time;
        assert_eq!(record.out_since(now), None, "it comes back by itself");
    }
    now += times.base * 8;
    assert_eq!(fail(&mut record, now), Some(times.base * 3), "ten, less eight good times, and one");
    now += times.base * 1000;
    assert_eq!(fail(&mut record, now), Some(times.base));
}

#[test]
fn one_that_fails_far_more_often_than_its_siblings_stands_out() {
    let window = |(requests, failed)| Window { requests, failed };
    let check = |windows: &[(u32, u32)], expected: &[usize]| {
        let windows: Vec<_> = windows.iter().copied().map(window).collect();
        assert_eq!(far_above(&windows), expected, "{windows:?}");
    };
    check(&[], &[]);
    check(&[(100, 100)], &[]);
    check(&[(100, 30), (100, 0)], &[0]);
    check(&[(100, 19), (100, 0)], &[]);
    check(&[(19, 19), (100, 0)], &[]);
    check(&[(100, 50), (10, 0)], &[]);
    check(&[(100, 50), (100, 50), (100, 50)], &[]);
    check(&[(100, 40), (100, 10), (100, 10)], &[0]);
    check(&[(100, 39), (100, 10), (100, 10)], &[]);
    check(&[(100, 90), (300, 5), (100, 60)], &[0]);
    check(&[(u32::MAX, u32::MAX), (u32::MAX, 0)], &[0]);
}

fn any_candidate() -> impl Strategy<Value = (usize, bool, bool, Option<u64>, f64)> {
    let out = proptest::option::of(0..100_u64);
    (0..50_usize, any::<bool>(), any::<bool>(), out, 0.1..=1.0)
}

proptest! {
    /// Safety: what is picked was not tried and may be picked; progress: something is while there is
    /// anything untried.
    #[test]
    fn a_pick_is_allowed_and_there_is_one(drawn in proptest::collection::vec(any_candidate(), 0..12), seed: u64) {
        let epoch = Instant::now();
        let candidates: Vec<_> = drawn.into_iter().map(|(outstanding, untried, aside, out, weight)| {
            let out_since = out.map(|seconds| epoch + Duration::from_secs(seconds));
            Candidate { outstanding, untried, aside, out_since, weight }
        }).collect();
        let out = left_out(&candidates);
        prop_assert!(out.len() <= candidates.len() / 2, "at most half, so never the last");
        let mut rng = fastrand::Rng::with_seed(seed);
        let Some(picked) = pick(&candidates, &mut rng) else {
            prop_assert!(candidates.iter().all(|one| !one.untried));
            return Ok(());
        };
        prop_assert!(candidates[picked].untried);
        let good = |idx: usize| {
            let one = &candidates[idx];
            one.untried && !one.aside && !out.contains(&idx)
        };
        prop_assert!(good(picked) || !(0..candidates.len()).any(good));
    }

    /// However requests end, an ejection ends within the longest time and there is none without
    /// failures enough.
    #[test]
    fn an_ejection_is_earned_and_ends(steps in proptest::collection::vec((any::<bool>(), 0..20_000_u64), 1..200)) {
        let (mut record, times) = (Record::default(), Times::default());
        let longest = times.base * 10;
        let (mut now, mut in_a_row) = (Instant::now(), 0);
        for (failed, millis) in steps {
            now += Duration::from_millis(millis);
            in_a_row = if failed { in_a_row + 1 } else { 0 };
            let outcome = if failed { Outcome::Failed } else { Outcome::Answered };
            if let Some(time) = record.note(outcome, now, &times) {
                prop_assert!(in_a_row >= CONSECUTIVE);
                prop_assert!((times.base..=longest).contains(&time));
                prop_assert_eq!(record.back_at(), Some(now + time));
            }
            prop_assert!(record.out_since(now + longest).is_none());
        }
    }
}
