use longshore_api::v1::AppView;
use longshore_types::{Generation, ReleaseNumber};

use super::*;

fn app(name: &str, ready: u32) -> AppView {
    AppView {
        project: ProjectName::default(),
        app: name.parse().unwrap(),
        release: ReleaseNumber(1),
        image: "default/web:1".to_owned(),
        count: 3,
        priority: Default::default(),
        ready,
        outdated: 0,
        away: vec![],
        hosts: Vec::new(),
        urls: Vec::new(),
        state: "rolling".to_owned(),
        canary: None,
        failed: None,
        latency: None,
        note: None,
        generation: Generation(1),
    }
}

fn view(apps: &[AppView]) -> ProjectView {
    ProjectView { apps: apps.to_vec(), instances: Vec::new() }
}

/// The events' names, ids without the feed's run, and data.
fn told(feed: &Feed, place: &mut Place) -> Vec<String> {
    let frames = feed.news(place);
    let text = frames.iter().map(|frame| String::from_utf8(frame.to_vec()).unwrap());
    text.map(|text| text.replace(&feed.run, "run")).collect()
}

#[test]
fn a_watcher_gets_the_state_and_then_what_changes() {
    let feed = Feed::new(view(&[app("a", 1), app("b", 1)]));
    let mut place = feed.place(None);
    let first = told(&feed, &mut place);
    assert!(first[0].starts_with("event: state\nid: run-0\n"), "{first:?}");
    assert_eq!(told(&feed, &mut place), [""; 0]);

    feed.update(view(&[app("a", 1), app("b", 1)]));
    assert_eq!(told(&feed, &mut place), [""; 0], "nothing changed");
    feed.update(view(&[app("a", 2)]));
    feed.update(view(&[app("a", 3)]));
    let changes = told(&feed, &mut place);
    assert_eq!(changes.len(), 2);
    assert!(changes[0].starts_with("event: change\nid: run-1\n"), "{changes:?}");
    assert!(changes[0].contains("\"apps_gone\":[\"b\"]"), "{changes:?}");
    assert!(changes[1].contains("\"ready\":3"), "{changes:?}");
}

#[test]
fn who_comes_back_goes_on_where_they_were_and_a_stranger_begins_anew() {
    let feed = Feed::new(view(&[app("a", 0)]));
    for ready in 1..=3 {
        feed.update(view(&[app("a", ready)]));
    }
    let resumed = told(&feed, &mut feed.place(Some(&feed.id(1))));
    assert_eq!(resumed.len(), 2);
    assert!(resumed[0].starts_with("event: change\nid: run-2\n"), "{resumed:?}");
    for other in [feed.id(4), feed.id(u64::MAX), "other-1".to_owned(), "".to_owned()] {
        let anew = told(&feed, &mut feed.place(Some(&other)));
        assert!(anew.len() == 1 && anew[0].starts_with("event: state\nid: run-3\n"), "{other}");
    }
}

#[test]
fn what_is_kept_has_an_end_and_who_missed_more_gets_the_state() {
    let feed = Feed::new(view(&[]));
    let large = |ready| {
        let image = "x".repeat(KEPT_BYTES / 3);
        view(&[AppView { image, ..app("a", ready) }])
    };
    for ready in 1..=6 {
        feed.update(large(ready));
        assert!(feed.log().kept_bytes <= KEPT_BYTES);
    }
    let names = |last: u64| {
        let frames = feed.news(&mut feed.place(Some(&feed.id(last))));
        frames.iter().map(|frame| frame.starts_with(b"event: change")).collect::<Vec<_>>()
    };
    assert_eq!(names(4), [true, true]);
    assert_eq!(names(1), [false]);
}
