//! Races in a world of events, with neighbours of every kind and one source for all.

mod supply;
mod world;

use proptest::prelude::*;

use super::*;
use supply::Line;
use world::{Manner, Setup, World};

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        (1_u64..3000).prop_map(Manner::Gives),
        (1_u64..50).prop_map(Manner::Gives),
        (1_u64..3000).prop_map(Manner::Lies),
        (1_u64..300).prop_map(Manner::Fails),
        (1_u64..3000).prop_map(Manner::Lacks),
        Just(Manner::Waits),
        Just(Manner::Silent),
    ]
}

fn line(lines: &'static [Line]) -> impl Strategy<Value = Line> {
    proptest::sample::select(lines)
}

/// By how much a pull may be longer than one of the source alone: as SPECIFICATION.md has it.
fn leeway(setup: &Setup, n_others: usize) -> Duration {
    let frames = setup.run + setup.run * RUNS_AT_ONCE + PEER_AT_ONCE * n_others + 2;
    Duration::from_millis(setup.per_frame) * frames as u32 + HEDGE.0
}

prop_compose! {
    fn setup(n_frames: Range<usize>, lines: &'static [Line])(
        seed: u8,
        run in prop_oneof![Just(1_usize), Just(8)],
        n_frames in n_frames,
        per_frame in prop_oneof![5_u64..200, 5_u64..1500],
        line in line(lines),
        have_all: bool,
    ) -> Setup {
        Setup { seed, run, n_frames, per_frame, line, have_all }
    }
}

proptest! {
    #[test]
    fn no_neighbour_makes_a_pull_slower_than_the_source_alone(
        setup in setup(1..100, &[Line::Shared, Line::InTurn]),
        others in proptest::collection::vec(manner(), 0..5),
    ) {
        let manners: Vec<_> = [Manner::Races].into_iter().chain(others.clone()).collect();
        let world = World::run(setup, &manners);
        let me = &world.members[0];
        let alone = World::alone(setup, &manners)[0].unwrap();
        let took = me.took.unwrap();
        prop_assert!(took <= alone + leeway(&setup, others.len()), "{took:?} and {alone:?} alone");
        prop_assert!(me.has.iter().all(|has| *has));
        // Nobody is blamed that gave what it should in good time.
        for (peer, why) in &me.given_up {
            let manner = others[*peer];
            prop_assert!(!matches!(manner, Manner::Gives(..50)), "{manner:?} {why:?}");
            let is_lie = *why == GivenUp::Lied;
            prop_assert!(!is_lie || matches!(manner, Manner::Lies(_)), "{manner:?} {why:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn nodes_that_begin_together_take_little_more_than_one_copy(
        setup in setup(96..97, &[Line::Shared, Line::InTurn, Line::Each]),
        n_nodes in 2_usize..9,
    ) {
        let setup = Setup { per_frame: setup.per_frame.max(25), ..setup };
        let manners = vec![Manner::Races; n_nodes];
        let world = World::run(setup, &manners);
        let most = setup.n_frames * 5 / 4;
        prop_assert!(world.n_of_source <= most, "{} of {most}", world.n_of_source);
        for (member, alone) in world.members.iter().zip(World::alone(setup, &manners)) {
            let (took, alone) = (member.took.unwrap(), alone.unwrap());
            prop_assert!(took <= alone, "{took:?} and {alone:?} alone");
            prop_assert_eq!(&member.given_up, &[]);
        }
    }
}

/// What came of a race with one other, and how many frames the source gave.
fn with_one(manner: Manner) -> (World, usize) {
    let setup =
        Setup { seed: 1, run: 1, n_frames: 40, per_frame: 20, line: Line::InTurn, have_all: true };
    let world = World::run(setup, &[Manner::Races, manner]);
    let n_of_source = world.n_of_source;
    (world, n_of_source)
}

#[test]
fn at_the_very_moment_at_which_the_source_is_due_it_is_not_forgotten() {
    let manners = [Manner::Races, Manner::Fails(235), Manner::Lacks(906)];
    let setup =
        Setup { seed: 0, run: 1, n_frames: 32, per_frame: 47, line: Line::InTurn, have_all: true };
    let world = World::run(setup, &manners);
    assert!(world.members[0].took < Some(Duration::from_millis(1700)));
}

#[test]
fn a_neighbour_that_has_all_gives_all_but_what_shows_how_fast_the_source_is() {
    assert_eq!(with_one(Manner::Gives(5)).1, (40 / TRIAL_PART).min(RUNS_AT_ONCE));
}

#[test]
fn who_lies_fails_or_is_too_slow_is_given_up_and_who_lacks_it_is_not_blamed() {
    for (manner, why) in [
        (Manner::Lies(5), GivenUp::Lied),
        (Manner::Fails(5), GivenUp::Failed),
        (Manner::Silent, GivenUp::Slow),
        (Manner::Gives(5000), GivenUp::Slow),
        (Manner::Waits, GivenUp::Slow),
        (Manner::Lacks(5), GivenUp::Absent),
    ] {
        let (world, n_of_source) = with_one(manner);
        assert_eq!(world.members[0].given_up, [(0, why)], "{manner:?}");
        assert_eq!(n_of_source, 40, "{manner:?}");
    }
}

/// At a source that is slow for all, a frame that a neighbour waits for takes long, and longer than it keeps others
/// waiting.
#[test]
fn who_waits_for_a_slow_source_is_waited_for() {
    for line in [Line::Shared, Line::InTurn] {
        let setup = Setup { seed: 5, run: 8, n_frames: 96, per_frame: 800, line, have_all: false };
        let world = World::run(setup, &[Manner::Races; 8]);
        assert!(world.n_of_source <= 108, "{line:?}: {}", world.n_of_source);
        for member in &world.members {
            assert_eq!(member.given_up, [], "{line:?}");
        }
    }
}

/// Where a node asked for one run beside others that ask for four, the source would seem slower to it than it is.
#[test]
fn how_fast_the_source_is_is_known_of_as_many_runs_as_without_neighbours() {
    let mut manners = vec![Manner::Races; 4];
    manners.extend([Manner::Gives(2744), Manner::Gives(2931)]);
    for seed in 0..6 {
        let (line, have_all) = (Line::Shared, false);
        let setup = Setup { seed, run: 8, n_frames: 160, per_frame: 46, line, have_all };
        let world = World::run(setup, &manners);
        for (member, alone) in world.members.iter().zip(World::alone(setup, &manners)).take(4) {
            let (took, alone) = (member.took.unwrap(), alone.unwrap());
            assert!(took * 4 <= alone * 5, "{seed}: {took:?} and {alone:?} alone");
        }
    }
}

#[test]
fn what_one_that_died_was_to_fetch_is_shared_by_the_others() {
    let mut manners = vec![Manner::Races; 5];
    manners.push(Manner::Fails(5));
    let setup = Setup {
        seed: 3,
        run: 1,
        n_frames: 120,
        per_frame: 20,
        line: Line::InTurn,
        have_all: false,
    };
    let world = World::run(setup, &manners);
    assert!(world.n_of_source <= 150, "{}", world.n_of_source);
    for member in &world.members[..5] {
        assert_eq!(member.given_up, [(4, GivenUp::Failed)]);
    }
}

#[test]
fn runs_are_of_frames_that_follow_one_another() {
    let wishes = [(0, false), (1, true), (3, false), (4, true), (5, true), (6, true), (7, true)];
    let wishes = wishes.map(|(idx, follows)| Wish { idx, follows }).to_vec();
    let own = (Digest::from_sha256([1; 32]), "n0".to_owned());
    let mut race = Race::new(own, 8, wishes, Vec::new());
    let mut asked = Vec::new();
    while let Some(Ask::Source { frames }) = race.next(Duration::ZERO) {
        asked.push(frames);
    }
    // As many as without neighbours, and of what there is the same for each.
    assert_eq!(asked, [0..2, 2..4, 4..5, 5..6]);
}
