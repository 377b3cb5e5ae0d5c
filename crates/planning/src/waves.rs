//! In which order a new release comes to the locations of an app.
//!
//! First to one, the one with the fewest instances; once that serves the release, to one more, then to two, four,
//! and so on: as many as have it already. Inside of a location instances follow one another as
//! [`crate::location`] plans. A location that is not heard of is neither healthy nor unhealthy, so it holds up
//! nobody; it is told last, and finds the release when it is back.

use longshore_types::LocationName;

/// What a location has of an app whose release is to become another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The location.
    pub location: LocationName,
    /// How many instances should run there.
    pub count: u32,
    /// True when it reported lately.
    pub reachable: bool,
    /// True when it was told of the release.
    pub told: bool,
    /// True when all that should run there is of the release and healthy, and what is left of others is on its
    /// way out.
    pub served: bool,
    /// True when nothing is left of others besides.
    pub complete: bool,
}

/// How far all of them are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// True when a location is heard of, so that anything can be said.
    pub is_heard: bool,
    /// True when all were told, and those that are heard of serve the release.
    pub is_served: bool,
    /// True when those have nothing else left besides.
    pub is_complete: bool,
}

/// How far all of them are.
pub fn standing(parts: &[Part]) -> Standing {
    let heard = || parts.iter().filter(|part| part.reachable);
    let is_heard = heard().next().is_some();
    let is_told = is_heard && parts.iter().all(|part| part.told);
    Standing {
        is_heard,
        is_served: is_told && heard().all(|part| part.served),
        is_complete: is_told && heard().all(|part| part.complete),
    }
}

/// The locations that are to be told of the release now.
pub fn next_wave(parts: &[Part]) -> Vec<LocationName> {
    let told = || parts.iter().filter(|part| part.told && part.reachable && part.count > 0);
    if !told().all(|part| part.served) {
        return Vec::new();
    }
    let mut untold: Vec<&Part> = parts.iter().filter(|part| !part.told).collect();
    untold.sort_by_key(|part| (!part.reachable, part.count, &part.location));
    let heard = untold.iter().filter(|part| part.reachable).count();
    let next = match heard {
        // Only those are left that nobody hears of: they hold up nobody, nor does one of them another, but one
        // goes first also when that is all that there is.
        0 if told().next().is_some() => untold.len(),
        0 if parts.iter().any(|part| part.told && part.count > 0) => 0,
        0 => 1,
        _ => told().count().clamp(1, heard),
    };
    untold.into_iter().take(next).map(|part| part.location.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(idx: usize, count: u32, reachable: bool) -> Part {
        let location = format!("l{idx}").parse().unwrap();
        Part { location, count, reachable, told: false, served: false, complete: false }
    }

    /// Tells a wave, and has those that are reachable serve the release or not.
    fn tell(parts: &mut [Part], wave: &[LocationName], works: bool) {
        for part in parts.iter_mut().filter(|part| wave.contains(&part.location)) {
            part.told = true;
            (part.served, part.complete) = (works && part.reachable, works && part.reachable);
        }
    }

    fn names(wave: &[LocationName]) -> Vec<&str> {
        wave.iter().map(LocationName::as_str).collect()
    }

    #[test]
    fn one_then_as_many_as_have_it_and_those_that_are_cut_off_last() {
        let mut parts: Vec<_> =
            [5, 2, 9, 2, 1].into_iter().zip(0..).map(|(n, i)| part(i, n, true)).collect();
        parts[4].reachable = false;
        let mut waves = Vec::new();
        while !parts.iter().all(|part| part.told) {
            let wave = next_wave(&parts);
            waves.push(names(&wave).join(" "));
            tell(&mut parts, &wave, true);
        }
        assert_eq!(waves, ["l1", "l3", "l0 l2", "l4"]);
        let all = Standing { is_heard: true, is_served: true, is_complete: true };
        assert_eq!(standing(&parts), all);
        assert!(next_wave(&parts).is_empty());
    }

    #[test]
    fn one_that_does_not_get_healthy_holds_up_the_others_until_nobody_hears_of_it() {
        let mut parts: Vec<_> = (0..3).map(|i| part(i, 1, true)).collect();
        let first = next_wave(&parts);
        tell(&mut parts, &first, false);
        assert!(next_wave(&parts).is_empty());
        parts[0].reachable = false;
        assert_eq!(names(&next_wave(&parts)), ["l1"]);
        assert_eq!(standing(&parts), Standing { is_heard: true, ..Standing::default() });
    }

    #[test]
    fn where_nobody_is_heard_of_one_goes_first_and_nothing_is_said() {
        let mut parts: Vec<_> = (0..3).map(|i| part(i, 1, false)).collect();
        let first = next_wave(&parts);
        assert_eq!(names(&first), ["l0"]);
        tell(&mut parts, &first, false);
        assert_eq!(standing(&parts), Standing::default());
        assert!(next_wave(&parts).is_empty());
    }

    proptest! {
        #[test]
        fn every_reachable_location_gets_it_in_few_waves_and_never_more_than_twice_as_many(
            all in prop::collection::vec((1_u32..5, any::<bool>()), 1..60)
        ) {
            let mut parts: Vec<_> =
                all.iter().enumerate().map(|(i, (n, heard))| part(i, *n, *heard)).collect();
            let n_heard = parts.iter().filter(|part| part.reachable).count();
            let mut n_waves = 0;
            loop {
                let n_told = parts.iter().filter(|p| p.told && p.reachable && p.count > 0).count();
                let wave = next_wave(&parts);
                prop_assert_eq!(&wave, &next_wave(&parts), "the same again");
                if wave.is_empty() {
                    break;
                }
                let heard = |name: &&LocationName| parts.iter().any(|p| p.location == **name && p.reachable);
                prop_assert!(wave.iter().filter(heard).count() <= n_told.max(1));
                prop_assert!(wave.iter().all(|name| parts.iter().any(|p| p.location == *name && !p.told)));
                tell(&mut parts, &wave, true);
                n_waves += 1;
            }
            prop_assert!(parts.iter().all(|part| part.told || n_heard == 0));
            prop_assert!(n_waves <= 3 + parts.len().ilog2(), "{} waves", n_waves);
        }
    }
}
