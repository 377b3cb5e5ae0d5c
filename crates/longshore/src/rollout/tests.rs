use longshore_api::links::ObservedInstance;
use longshore_api::v1::CanaryView;
use longshore_types::{ExitReason, Generation};

use super::*;
use crate::test_views;

fn instance(id: &str, release: u64, phase: InstancePhase) -> InstanceView {
    InstanceView {
        release: ReleaseNumber(release),
        observed: ObservedInstance {
            phase,
            ..ObservedInstance::pending(id.parse().unwrap(), Generation(1))
        },
        ..test_views::instance(id)
    }
}

fn app(release: u64, count: u32, ready: u32, outdated: u32) -> AppView {
    AppView { release: ReleaseNumber(release), count, ready, outdated, ..test_views::app("web") }
}

fn view(app: AppView, instances: Vec<InstanceView>) -> ProjectView {
    ProjectView { apps: vec![app], instances }
}

#[test]
fn only_what_is_new_is_told() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(2), Generation(1));
    let old = instance("web-00000001", 1, InstancePhase::Healthy);
    let new = instance("web-00000002", 2, InstancePhase::Pulling);
    let first = view(app(2, 1, 0, 1), vec![old.clone(), new]);
    assert_eq!(
        rollout.update(&first),
        ["web-00000001  r1 on here/n1: healthy", "web-00000002  r2 on here/n1: pulling"]
    );
    assert_eq!(rollout.update(&first), [""; 0], "nothing new");
    assert_eq!(rollout.progress(), Progress::Underway);
    assert_eq!(rollout.summary(), "0 of 1 healthy, 1 to be replaced or ended");

    let new = instance("web-00000002", 2, InstancePhase::Healthy);
    let lines = rollout.update(&view(app(2, 1, 1, 0), vec![new]));
    assert_eq!(lines, ["web-00000002  r2 on here/n1: healthy", "web-00000001  gone"]);
    assert_eq!(rollout.progress(), Progress::Done);
}

#[test]
fn what_stands_in_the_way_is_named() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(1), Generation(1));
    let mut failing = instance("web-00000001", 1, InstancePhase::Backoff);
    failing.observed.restarts = 3;
    failing.observed.last_exit = Some(ExitReason::Exited { code: 7 });
    let mut stuck = app(1, 2, 0, 0);
    stuck.note = Some("1 instance finds no place: no node has 8 GiB free".to_owned());
    let view = view(stuck, vec![failing]);
    rollout.update(&view);
    assert_eq!(
        rollout.obstacles(&view),
        [
            "web: 1 instance finds no place: no node has 8 GiB free",
            "web-00000001  r1 on here/n1: backoff, started again 3 times (exited with code 7)"
        ]
    );
}

#[test]
fn what_an_instance_notes_is_told_once() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(1), Generation(1));
    let mut failing = instance("web-00000001", 1, InstancePhase::Starting);
    failing.observed.note = Some("health check: refused".to_owned());
    let mut waiting = app(1, 1, 0, 0);
    waiting.note = Some("web-00000001: health check: refused".to_owned());
    let view = view(waiting, vec![failing]);
    let line = "web-00000001  r1 on here/n1: starting (health check: refused)";
    assert_eq!(rollout.update(&view), [line]);
    assert_eq!(rollout.obstacles(&view), [line]);
}

#[test]
fn how_far_an_image_is_is_shown_and_makes_no_lines() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(1), Generation(1));
    let mut pulling = instance("web-00000001", 1, InstancePhase::Pulling);
    let line = "web-00000001  r1 on here/n1: pulling";
    let view = |pulling: &InstanceView| view(app(1, 1, 0, 0), vec![pulling.clone()]);
    assert_eq!(rollout.update(&view(&pulling)), [line]);
    assert_eq!(rollout.status(), "0 of 1 healthy");
    for done in ["1 GiB", "2 GiB"] {
        let note = format!("{done} of 5.5 GiB of its image are here");
        pulling.observed.note = Some(note.clone());
        let view = view(&pulling);
        assert_eq!(rollout.update(&view), [""; 0]);
        assert_eq!(rollout.status(), format!("0 of 1 healthy; web-00000001: {note}"));
        assert_eq!(rollout.obstacles(&view), [format!("{line} ({note})")]);
    }
    let creating = instance("web-00000001", 1, InstancePhase::Creating);
    assert_eq!(rollout.update(&view(&creating)).len(), 1);
    assert_eq!(rollout.status(), "0 of 1 healthy", "it is here");
}

#[test]
fn a_newer_release_or_a_removal_ends_the_wait() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(1), Generation(1));
    assert_eq!(rollout.progress(), Progress::Underway, "nothing seen yet");
    let only = instance("web-00000001", 1, InstancePhase::Starting);
    rollout.update(&view(app(2, 1, 0, 1), vec![only]));
    assert_eq!(rollout.progress(), Progress::Overtaken);
    rollout.update(&ProjectView { apps: Vec::new(), instances: Vec::new() });
    assert_eq!(rollout.progress(), Progress::Removed);
}

#[test]
fn a_release_that_was_given_up_ends_the_wait_and_an_old_view_does_not() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(2), Generation(5));
    // Of before the deploy, which went back to a release that had been replaced.
    let of = |generation, app| AppView { generation: Generation(generation), ..app };
    rollout.update(&view(of(4, app(3, 1, 1, 0)), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Underway);
    let failed = |release| AppView { failed: Some(ReleaseNumber(2)), ..app(release, 1, 0, 0) };
    rollout.update(&view(of(5, failed(2)), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Failed { now: ReleaseNumber(2) });
    rollout.update(&view(of(6, failed(1)), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Failed { now: ReleaseNumber(1) });
}

#[test]
fn a_scale_to_nothing_is_done_when_nothing_is_left() {
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(1), Generation(1));
    rollout.update(&view(app(1, 0, 0, 1), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Underway);
    rollout.update(&view(app(1, 0, 0, 0), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Done);
}

#[test]
fn a_canary_that_is_healthy_ends_the_wait_unless_it_takes_over_by_itself() {
    let tried = |ready, wait| AppView {
        canary: Some(CanaryView { beside: ReleaseNumber(1), count: 2, ready, wait }),
        ..app(2, 4, ready, 4)
    };
    let mut rollout = Rollout::new("web".parse().unwrap(), ReleaseNumber(2), Generation(1));
    let main = instance("web-00000001", 1, InstancePhase::Healthy);
    let canary = instance("web-00000002", 2, InstancePhase::Starting);
    let first = view(tried(1, None), vec![main, canary]);
    rollout.update(&first);
    assert_eq!((rollout.progress(), rollout.steps()), (Progress::Underway, Some((1, 2))));
    assert_eq!(rollout.obstacles(&first), ["web-00000002  r2 on here/n1: starting"]);
    rollout.update(&view(tried(2, None), Vec::new()));
    assert_eq!((rollout.progress(), rollout.steps()), (Progress::Tried, Some((2, 2))));
    rollout.update(&view(tried(2, Some(longshore_types::Duration::from_secs(9))), Vec::new()));
    assert_eq!(rollout.progress(), Progress::Underway);
    // Promoted: four to become healthy, two of which are, and four to go.
    rollout.update(&view(app(2, 4, 2, 4), Vec::new()));
    assert_eq!(rollout.steps(), Some((2, 8)));
    rollout.update(&view(app(2, 4, 4, 1), Vec::new()));
    assert_eq!((rollout.progress(), rollout.steps()), (Progress::Underway, Some((7, 8))));
}
