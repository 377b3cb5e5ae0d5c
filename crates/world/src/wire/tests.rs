use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Amsterdam with two machines, New York and Singapore with one.
fn world(seed: u64) -> (Wire, [Duration; 3]) {
    let places = ["ams", "nyc", "sin"].map(|code| Place::find(code).unwrap());
    let ways =
        [(0, 1), (0, 2), (1, 2)].map(|(a, b): (usize, usize)| places[a].one_way_to(places[b]));
    (Wire::new(&places, vec![0, 0, 1, 2], seed), ways)
}

fn packet(number: u8) -> Vec<u8> {
    vec![number; 1000]
}

fn slow(slowness: Slowness) -> Wire {
    let (mut wire, _) = world(1);
    wire.set_slowness(0, 1, slowness);
    wire
}

/// What arrives until then, with the number of each.
fn arrived(wire: &mut Wire, now: Duration) -> Vec<(usize, u8)> {
    std::iter::from_fn(|| wire.take_due(now)).map(|(to, packet)| (to, packet[0])).collect()
}

#[test]
fn a_packet_is_there_after_its_time_and_not_before() {
    let (mut wire, [to_nyc, to_sin, _]) = world(1);
    let began = 5 * MS;
    assert_eq!(wire.offer(began, 0, 3, packet(1)), Outcome::Carried);
    assert_eq!(wire.offer(began, 0, 2, packet(2)), Outcome::Carried);
    assert_eq!(wire.offer(began, 0, 1, packet(3)), Outcome::Carried);
    assert_eq!(arrived(&mut wire, began), []);
    assert_eq!(arrived(&mut wire, began + MS), [(1, 3)], "machines of one place are near");
    assert_eq!(wire.next_due(), Some(began + to_nyc));
    assert_eq!(arrived(&mut wire, began + to_nyc - Duration::from_nanos(1)), []);
    assert_eq!(arrived(&mut wire, began + to_nyc), [(2, 2)]);
    assert_eq!(arrived(&mut wire, began + to_sin), [(3, 1)]);
    assert_eq!(wire.next_due(), None);
}

#[test]
fn once_a_path_is_cut_nothing_passes_not_even_what_was_under_way() {
    let (mut wire, [to_nyc, to_sin, _]) = world(1);
    wire.offer(MS, 0, 2, packet(1));
    wire.offer(MS, 0, 3, packet(2));
    wire.set_cut(1, 0, true);
    assert_eq!(wire.offer(MS, 0, 2, packet(3)), Outcome::Cut);
    assert_eq!(wire.offer(MS, 2, 1, packet(4)), Outcome::Cut, "both ways");
    assert_eq!(wire.offer(MS, 2, 3, packet(5)), Outcome::Carried, "others are not touched");
    let later = MS + to_nyc + to_sin;
    assert_eq!(arrived(&mut wire, later).len(), 2);
    wire.set_cut(0, 1, false);
    assert_eq!(wire.offer(later, 0, 2, packet(6)), Outcome::Carried);
    assert_eq!(arrived(&mut wire, later + to_nyc), [(2, 6)]);
    let PathView { is_cut, slowness: _, one_way, n_carried, n_dropped } = wire.path(0, 1);
    assert_eq!((is_cut, one_way, n_carried, n_dropped), (false, to_nyc, 1, 2));
}

#[test]
fn machines_are_cut_off_from_each_other_and_from_nobody_else() {
    let (mut wire, [to_nyc, ..]) = world(1);
    wire.offer(MS, 0, 1, packet(1));
    wire.offer(MS, 1, 2, packet(2));
    wire.set_apart(1, 0, true);
    assert_eq!(wire.offer(MS, 0, 1, packet(3)), Outcome::Cut, "of one place");
    assert_eq!(wire.offer(MS, 1, 0, packet(4)), Outcome::Cut, "both ways");
    assert_eq!(wire.offer(MS, 0, 2, packet(5)), Outcome::Carried);
    let later = MS + to_nyc;
    assert_eq!(arrived(&mut wire, later), [(2, 2), (2, 5)], "what was under way is lost");
    wire.set_cut(0, 1, true);
    wire.set_apart(0, 1, false);
    assert_eq!(wire.offer(later, 0, 1, packet(6)), Outcome::Carried);
    assert_eq!(wire.offer(later, 1, 2, packet(7)), Outcome::Cut, "their places are still apart");
    let PathView { n_carried, n_dropped, .. } = wire.path(0, 0);
    assert_eq!((n_carried, n_dropped), (0, 3));
}

#[test]
fn a_rate_lets_so_many_bytes_through_and_loses_what_would_wait_too_long() {
    // Ten packets a second, each a tenth of a second: two wait, the next would for longer than allowed.
    let mut wire = slow(Slowness { bytes_per_s: NonZeroU64::new(10_000), ..Slowness::default() });
    let (_, [to_nyc, ..]) = world(1);
    let outcomes = [1, 2, 3, 4, 5].map(|number| wire.offer(MS, 0, 2, packet(number)));
    use Outcome::{Carried, Full};
    assert_eq!(outcomes, [Carried, Carried, Carried, Full, Full]);
    let first = MS + 100 * MS + to_nyc;
    assert_eq!(arrived(&mut wire, first - MS), []);
    assert_eq!(arrived(&mut wire, first), [(2, 1)]);
    assert_eq!(arrived(&mut wire, first + 200 * MS), [(2, 2), (2, 3)]);
}

#[test]
fn what_was_slow_is_as_before_when_that_ends() {
    let delay = 700 * MS;
    let mut wire = slow(Slowness { delay, ..Slowness::default() });
    let (_, [to_nyc, ..]) = world(1);
    assert_eq!(wire.path(1, 0).one_way, to_nyc + delay);
    wire.offer(MS, 0, 2, packet(1));
    assert_eq!(wire.next_due(), Some(MS + to_nyc + delay));
    wire.set_slowness(1, 0, Slowness::default());
    assert_eq!(wire.path(0, 1).one_way, to_nyc);
}

#[test]
fn a_share_is_lost_and_the_same_packets_with_the_same_seed() {
    let fates = |seed: u64, noise: usize| {
        let (mut wire, _) = world(seed);
        wire.set_slowness(0, 1, Slowness { loss_ppm: 100_000, ..Slowness::default() });
        let one = |wire: &mut Wire| {
            // What goes on elsewhere changes nothing.
            for _ in 0..noise {
                wire.offer(MS, 0, 3, packet(0));
            }
            wire.offer(MS, 0, 2, packet(1)) == Outcome::Lost
        };
        (0..1000).map(|_| one(&mut wire)).collect::<Vec<_>>()
    };
    let lost = fates(7, 0).into_iter().filter(|is_lost| *is_lost).count();
    assert!((60..140).contains(&lost), "{lost} of 1000 at a tenth");
    assert_eq!(fates(7, 0), fates(7, 3));
    assert_ne!(fates(7, 0), fates(8, 0));
}

#[test]
fn a_path_holds_so_much_and_no_more() {
    let (mut wire, [to_nyc, ..]) = world(1);
    let big = || vec![0; MOST_IN_FLIGHT / 2];
    let outcomes = [0; 3].map(|_| wire.offer(MS, 0, 2, big()));
    assert_eq!(outcomes, [Outcome::Carried, Outcome::Carried, Outcome::Full]);
    assert_eq!(arrived(&mut wire, MS + to_nyc).len(), 2);
    assert_eq!(wire.offer(MS + to_nyc, 0, 2, big()), Outcome::Carried, "there is room again");
}

proptest! {
    /// Whatever is sent when: each packet arrives once, where it should, not before its time, and those of
    /// one path in the order in which they were sent.
    #[test]
    fn packets_come_whole_and_in_order(
        sends in proptest::collection::vec((0_u64..50, 0_usize..4, 0_usize..4), 1..60)
    ) {
        let (mut wire, _) = world(3);
        let mut now = Duration::ZERO;
        let mut sent = Vec::new();
        for (idx, (pause, from, to)) in sends.iter().enumerate() {
            now += u32::try_from(*pause).unwrap() * MS;
            let number = u8::try_from(idx).unwrap();
            prop_assert_eq!(wire.offer(now, *from, *to, packet(number)), Outcome::Carried);
            sent.push((*from, *to, number, now + wire.path(wire.machines[*from], wire.machines[*to]).one_way));
        }
        let mut came: Vec<(usize, u8)> = Vec::new();
        while let Some(due) = wire.next_due() {
            let (to, bytes) = wire.take_due(due).unwrap();
            let of = sent.iter().find(|(_, _, number, _)| *number == bytes[0]).unwrap();
            prop_assert_eq!((of.1, of.3), (to, due));
            came.push((of.0, bytes[0]));
        }
        prop_assert_eq!(came.len(), sent.len());
        for (from, to, number, _) in &sent {
            let path = (wire.machines[*from], wire.machines[*to]);
            let later = sent.iter().filter(|(f, t, other, _)| (wire.machines[*f], wire.machines[*t]) == path && other > number);
            let place_of = |wanted: u8| came.iter().position(|(_, number)| *number == wanted);
            for (_, _, other, _) in later {
                prop_assert!(place_of(*number) < place_of(*other));
            }
        }
    }
}
