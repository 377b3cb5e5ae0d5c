use longshore_api::links::Elsewhere;
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> LocationName {
    text.parse().unwrap()
}

/// Locations in one line on the equator, each a degree east of the one before.
const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn place(idx: usize) -> Place {
    Place {
        peering: Peering {
            address: Some(format!("{}:1", NAMES[idx])),
            authority: String::new(),
            relays: Vec::new(),
        },
        coordinates: format!("0,{idx}").parse().ok(),
        country: ["NL", "US", "DE"][idx % 3].parse().ok(),
        silent: false,
    }
}

fn app(at: impl IntoIterator<Item = usize>) -> Arc<ServedApp> {
    let at = at.into_iter().map(|idx| name(NAMES[idx])).collect();
    let hosts = vec!["web.test".parse().unwrap()];
    Arc::new(ServedApp { hosts, jurisdiction: BTreeSet::new(), at })
}

fn key(app: &str) -> AppKey {
    (Default::default(), app.parse().unwrap())
}

fn served(apps: impl IntoIterator<Item = (AppKey, Arc<ServedApp>)>) -> Served {
    let places = (0..NAMES.len()).map(|idx| (name(NAMES[idx]), place(idx)));
    Served { places: places.collect(), apps: apps.into_iter().collect() }
}

fn seen(served: &Served, from: &str) -> Option<String> {
    let places = served.seen_from(&name(from), &served.apps[&key("web")])?;
    Some(places.at.iter().map(LocationName::as_str).collect())
}

#[test]
fn a_location_is_told_of_the_nearest_others_and_never_of_itself() {
    let everywhere = served([(key("web"), app(0..NAMES.len()))]);
    assert_eq!(seen(&everywhere, "a").unwrap(), "bcdefghi");
    assert_eq!(seen(&everywhere, "l").unwrap(), "kjihgfed");
    assert_eq!(seen(&served([(key("web"), app([3]))]), "d"), None);
    // One that is cut off from here is better than none, and no other is worse.
    let mut silent = everywhere.clone();
    silent.places.get_mut(&name("b")).unwrap().silent = true;
    assert_eq!(seen(&silent, "a").unwrap(), "cdefghij");
    silent.apps.insert(key("web"), app([1, 11]));
    assert_eq!(seen(&silent, "a").unwrap(), "lb");
}

#[test]
fn outside_of_its_jurisdiction_nobody_is_told_of_an_app() {
    let hosts = vec!["web.test".parse().unwrap()];
    let at = NAMES.iter().map(|at| name(at)).collect();
    let jurisdiction = BTreeSet::from(["eu".parse().unwrap()]);
    let bound = Arc::new(ServedApp { hosts, jurisdiction, at });
    let mut served = served([(key("web"), bound)]);
    // Of each three one is in the United States.
    assert_eq!(seen(&served, "a").unwrap(), "cdfgijl");
    assert_eq!(seen(&served, "b"), None);
    served.places.get_mut(&name("a")).unwrap().country = None;
    assert_eq!(seen(&served, "a"), None, "nobody said where it is");
    assert_eq!(seen(&served, "c").unwrap(), "dfgijl");
}

#[test]
fn where_the_map_says_nothing_not_all_go_to_the_same() {
    let mut nowhere = served([(key("web"), app(0..NAMES.len()))]);
    nowhere.places.values_mut().for_each(|place| place.coordinates = None);
    let first: BTreeSet<_> =
        NAMES.iter().filter_map(|from| Some(seen(&nowhere, from)?.remove(0))).collect();
    assert!(first.len() > 3, "{first:?}");
    assert_eq!(seen(&nowhere, "a"), seen(&nowhere.clone(), "a"));
}

fn anything() -> impl Strategy<Value = Served> {
    let at = proptest::collection::btree_set(0..NAMES.len(), 1..5);
    let apps = proptest::collection::btree_map("[p-r]", at, 0..4);
    let silent = proptest::collection::btree_set(0..NAMES.len(), 0..3);
    let gone = proptest::collection::btree_set(0..NAMES.len(), 0..3);
    (apps, silent, gone).prop_map(|(apps, silent, gone)| {
        let mut served = served(apps.into_iter().map(|(name, at)| (key(&name), app(at))));
        silent.iter().for_each(|idx| {
            served.places.get_mut(&name(NAMES[*idx])).unwrap().silent = true;
        });
        gone.iter().for_each(|idx| _ = served.places.remove(&name(NAMES[*idx])));
        served
    })
}

proptest! {
    #[test]
    fn changes_add_up_to_what_a_new_stream_would_say(
        states in proptest::collection::vec(anything(), 1..6),
    ) {
        let to = name("c");
        let (mut known, mut before) = (Elsewhere::default(), None);
        for state in &states {
            known.take(state.change(before, &to));
            let mut whole = Elsewhere::default();
            whole.take(state.change(None, &to));
            prop_assert_eq!(&known, &whole);
            prop_assert!(state.change(Some(state), &to).is_empty());
            for places in known.apps.values() {
                prop_assert!(!places.at.is_empty() && places.at.len() <= MOST_PLACES);
                prop_assert!(!places.at.contains(&to));
                prop_assert!(places.at.iter().all(|at| known.peers.contains_key(at)));
            }
            before = Some(state);
        }
    }
}
