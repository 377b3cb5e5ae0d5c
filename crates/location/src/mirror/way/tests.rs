use super::*;

const MIB: u64 = 1 << 20;

fn spans(parts: &[Range<u64>]) -> Spans {
    let mut spans = Spans::default();
    parts.iter().for_each(|part| spans.insert(part.clone()));
    spans
}

#[test]
fn bytes_are_counted_once_however_they_come() {
    for (parts, expected) in [
        (&[0..5, 5..9][..], &[(0, 9)][..]),
        (&[5..9, 0..5], &[(0, 9)]),
        (&[0..2, 4..6, 1..5], &[(0, 6)]),
        (&[0..2, 4..6, 8..9, 0..9], &[(0, 9)]),
        (&[0..9, 3..4], &[(0, 9)]),
        (&[2..3, 0..1], &[(0, 1), (2, 3)]),
        (&[3..3, 4..4], &[]),
    ] {
        let found = spans(parts);
        assert!(found.0.iter().map(|(a, b)| (*a, *b)).eq(expected.iter().copied()), "{parts:?}");
    }
    let found = spans(&[2..5, 7..9]);
    assert_eq!((found.end_of(1), found.end_of(2), found.end_of(4)), (None, Some(5), Some(5)));
    assert_eq!((found.end_of(5), found.next_after(5), found.next_after(8)), (None, Some(7), None));
    assert!(!found.has_all(9) && spans(&[0..4, 4..9]).has_all(9) && spans(&[]).has_all(0));
    assert_eq!(found.count(), 5);
}

/// What the first reader has fetched, taken over by the way it goes.
fn fetch(way: &mut Way, reader: Id) -> Id {
    match way.step(reader) {
        Step::Fetch(fetch) => fetch,
        step => panic!("{step:?}"),
    }
}

#[test]
fn two_who_want_the_same_have_it_fetched_once() {
    let mut way = Way::default();
    let (a, b) = (way.join(0..MIB), way.join(0..MIB));
    let only = fetch(&mut way, a);
    assert_eq!((way.step(a), way.step(b)), (Step::Wait, Step::Wait));
    way.brought(only, 100);
    assert_eq!((way.step(a), way.step(b)), (Step::Read(0..100), Step::Read(0..100)));
    way.took(a, 100);
    assert_eq!(way.step(a), Step::Wait);
    // One that leaves takes nothing along.
    way.leave(a);
    assert_eq!(way.go(only), Go::On);
    way.brought(only, MIB - 100);
    assert_eq!((way.go(only), way.step(b)), (Go::Stop, Step::Read(0..PIECE)));
    way.ended(only, None);
    way.took(b, MIB);
    assert_eq!(way.step(b), Step::End);
    way.leave(b);
    assert!(way.is_idle() && way.has_all(MIB));
}

#[test]
fn what_is_far_ahead_is_taken_over_and_what_is_near_is_waited_for() {
    let mut way = Way::default();
    let all = way.join(0..100 * MIB);
    let first = fetch(&mut way, all);
    let near = way.join(FAR..FAR + 1);
    assert_eq!(way.step(near), Step::Wait);
    let far = way.join(50 * MIB..60 * MIB);
    let second = fetch(&mut way, far);
    assert_eq!((way.left_of(first), way.left_of(second)), (0..50 * MIB, 50 * MIB..60 * MIB));
    let further = way.join(40 * MIB..70 * MIB);
    let third = fetch(&mut way, further);
    assert_eq!((way.left_of(first), way.left_of(third)), (0..40 * MIB, 40 * MIB..50 * MIB));
    // What is here is not asked for again, and what is behind it later.
    way.brought(third, 10 * MIB);
    way.ended(third, None);
    way.brought(second, 10 * MIB);
    way.ended(second, None);
    way.took(further, 20 * MIB);
    let last = fetch(&mut way, further);
    assert_eq!(way.left_of(last), 60 * MIB..70 * MIB);
    way.brought(first, 40 * MIB);
    way.ended(first, None);
    way.took(all, 60 * MIB);
    assert_eq!(way.step(all), Step::Wait, "the last one brings it");
}

#[test]
fn a_fetch_keeps_with_who_reads_and_ends_when_nobody_does() {
    let mut way = Way::default();
    let slow = way.join(0..100 * MIB);
    let only = fetch(&mut way, slow);
    way.brought(only, AHEAD - 1);
    assert_eq!(way.go(only), Go::On);
    way.brought(only, 1);
    assert_eq!(way.go(only), Go::Pause);
    way.took(slow, 1);
    assert_eq!(way.go(only), Go::On);
    // Who is quicker has it go on, and who wants no more than is here does not.
    let short = way.join(0..MIB);
    way.brought(only, MIB);
    assert_eq!(way.go(only), Go::Pause);
    let quick = way.join(AHEAD..100 * MIB);
    assert_eq!(way.go(only), Go::On);
    way.leave(quick);
    assert_eq!(way.go(only), Go::Pause);
    way.leave(slow);
    assert_eq!(way.go(only), Go::Stop);
    way.leave(short);
    way.ended(only, None);
    assert!(way.is_idle());
}

#[test]
fn a_fetch_that_failed_is_told_to_those_who_wait_for_it() {
    let mut way = Way::default();
    let (a, b) = (way.join(0..10), way.join(0..10));
    let first = fetch(&mut way, a);
    assert_eq!(way.step(b), Step::Wait);
    way.ended(first, Some("it is away"));
    assert_eq!(way.step(a), Step::Broken("it is away".to_owned()));
    assert_eq!(way.step(b), Step::Broken("it is away".to_owned()));
    let (c, d) = (way.join(0..10), way.join(0..10));
    let second = fetch(&mut way, c);
    assert_eq!(way.step(d), Step::Wait);
    way.brought(second, 4);
    way.ended(second, None);
    way.took(c, 4);
    let third = fetch(&mut way, c);
    assert_eq!((way.left_of(third), way.step(d)), (4..10, Step::Read(0..4)));
}
