//! Addresses that have to answer where something starts.

use longshore_types::Reached;

use super::*;

/// A location whose nodes said this of the one address that they tried.
fn tried(idx: usize, nodes: &[Option<&str>]) -> LocationState {
    let one = |error: &Option<&str>| Reached {
        address: "db:5432".parse().unwrap(),
        at: Timestamp(7),
        error: error.map(str::to_owned),
    };
    let (state, traits) = (location(idx, true, 1000), Traits::default());
    let tries: Vec<_> = nodes.iter().map(|error| vec![one(error)]).collect();
    let reported = tries.iter().map(|reached| ReportedNode {
        traits: &traits,
        open: true,
        capacity: state.free,
        promised: Capacity::default(),
        leaving: Capacity::default(),
        yielding: &[],
        gpus: &[],
        reached,
    });
    LocationState { kinds: kinds(reported), ..state }
}

fn reaching(shares: Vec<Share>) -> WantedApp {
    let placement =
        Placement { reach: ["db:5432".parse().unwrap()].into(), ..Placement::default() };
    WantedApp { placement, ..app(1, 2, shares) }
}

#[test]
fn what_starts_does_so_where_its_addresses_answer_and_what_runs_stays() {
    let refused = Some("connection refused");
    let untried = location(3, true, 9000);
    let locations = [tried(1, &[refused]), tried(2, &[refused, None]), untried.clone()];
    let shares = plan(5, &reaching(vec![]), &locations);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 1, 2)]);
    // Only the room of the node that reaches it counts.
    let mut full = tried(2, &[None, refused]);
    full.kinds[0].largest = capacity(50);
    assert_eq!(full.kinds.len(), 2);
    let nowhere = plan_shares(Timestamp(5), &reaching(vec![]), &[full]).waiting.unwrap();
    assert_eq!(nowhere.decision.candidates[0].lack, Some(Lack::Memory));

    let waiting = plan_shares(Timestamp(5), &reaching(vec![]), &[tried(1, &[refused]), untried]);
    let Waiting { decision, .. } = waiting.waiting.unwrap();
    assert_eq!(decision.why, "no location reaches all of db:5432");
    let told: Vec<_> = decision.candidates.iter().map(|one| (one.lack, one.why.as_str())).collect();
    let expected = [
        "refused: db:5432 does not answer there: connection refused",
        "refused: nobody has tried db:5432 there yet",
    ];
    assert_eq!(told, expected.map(|why| (Some(Lack::Reach), why)));

    // What it answered to once keeps what it has, and gets no more.
    let lost = [tried(2, &[refused]), tried(4, &[None])];
    let stays = plan(6, &reaching(shares.clone()), &lost);
    assert_eq!(counts(&stays), [("loc2".to_owned(), 1, 2)]);
    let more = plan(6, &WantedApp { count: 2, max: 4, ..reaching(shares) }, &lost);
    let each: Vec<_> = more.iter().map(|share| (share.location.as_str(), share.count)).collect();
    assert_eq!(each, [("loc2", 1), ("loc4", 1)]);
}

#[test]
fn an_address_that_answers_wakes_what_waits_for_it() {
    let (before, after) = ([tried(1, &[Some("no answer")])], [tried(1, &[None])]);
    assert!(supplies(&before, &before).is_empty());
    assert!(supplies(&before, &after)[&before[0].name].contains(&Lack::Reach));
}
