//! Wishes for images on nodes: who may have them, who is told, and how they end.

use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, PrewarmSet};
use longshore_api::v1::{PrewarmStatus, PrewarmView, TokenCreated};
use longshore_link::{CallError, LineStream};
use longshore_types::{Generation, ImageState, Traits};
use serde_json::{Value, json};

use crate::plane::*;

const PREWARMS: &str = "/v1/projects/default/prewarms";

impl Plane {
    async fn wish(&self, wish: Value) -> Result<PrewarmView, CallError> {
        self.user.call(Method::POST, PREWARMS, Some(&wish)).await
    }

    async fn told_of_wishes(&self, location: &str) -> LineStream<PrewarmSet> {
        self.link.watch(&format!("/link/locations/{location}/prewarm")).await.unwrap()
    }

    /// Why a wish ended, once it has.
    async fn ended(&self, path: &str) -> String {
        loop {
            let status: PrewarmStatus = self.user.get(path).await.unwrap();
            if let Some(ended) = status.wish.ended {
                return ended;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What is told next that is so.
async fn told(
    sets: &mut LineStream<PrewarmSet>,
    holds: impl Fn(&PrewarmSet) -> bool,
) -> PrewarmSet {
    use futures_util::StreamExt as _;
    loop {
        let set = sets.next().await.unwrap().unwrap();
        if holds(&set) {
            return set;
        }
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>, code: ProblemCode, word: &str) {
    match outcome {
        Err(CallError::Refused(problem)) if problem.code == code => {
            let told = format!("{problem:?}");
            assert!(told.contains(word), "no {word:?} in {told}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wish_is_told_to_those_it_may_be_for_outlives_a_restart_and_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    for location in ["ams", "sin"] {
        let mut report = report_of(location, Generation(0), vec![], vec![]);
        report.nodes[0].traits =
            Traits { labels: ["disk=nvme".parse().unwrap()].into(), ..Traits::default() };
        plane.send(&report).await;
    }
    let mut here = plane.told_of_wishes("ams").await;
    let mut there = plane.told_of_wishes("sin").await;
    for sets in [&mut here, &mut there] {
        assert_eq!(told(sets, |_| true).await.wishes, []);
    }
    let wish = plane.wish(json!({"image": "default/web:1", "places": ["ams"]})).await.unwrap();
    assert_eq!((wish.image.as_str(), wish.digest.to_string().as_str()), ("default/web:1", DIGEST));
    let set = told(&mut here, |set| !set.wishes.is_empty()).await;
    assert_eq!((set.wishes.len(), set.wishes[0].digest), (1, wish.digest));
    assert_eq!(told(&mut there, |_| true).await.wishes, [], "it is not for that one");

    // Wished anew, it is wished elsewhere. Nobody can be asked here, which is said of each node.
    let wish =
        plane.wish(json!({"image": "default/web:1", "places": ["disk=nvme"]})).await.unwrap();
    told(&mut there, |set| set.wishes.len() == 1).await;
    let path = format!("{PREWARMS}/{}", wish.digest);
    let status: PrewarmStatus = plane.user.get(&path).await.unwrap();
    let nodes: Vec<_> = status.nodes.iter().map(|node| node.location.as_str()).collect();
    assert_eq!(nodes, ["ams", "sin"]);
    let is_told = |node: &longshore_api::v1::PrewarmedNode| {
        node.state == ImageState::Absent && node.note.is_some() && !node.given_up
    };
    assert!(status.nodes.iter().all(is_told), "{status:?}");

    plane.stop().await;
    let plane = Plane::start(dir.path()).await;
    let mut there = plane.told_of_wishes("sin").await;
    assert_eq!(told(&mut there, |_| true).await.wishes.len(), 1);
    let listed: Vec<PrewarmView> = plane.user.get(PREWARMS).await.unwrap();
    assert_eq!(listed, [wish]);
    plane.user.call::<(), ()>(Method::DELETE, &path, None).await.unwrap();
    told(&mut there, |set| set.wishes.is_empty()).await;
    let again = plane.user.call::<(), ()>(Method::DELETE, &path, None).await;
    refused(again, ProblemCode::NotFound, DIGEST);
    plane.stop().await;
}

#[tokio::test]
async fn a_wish_for_what_the_registry_no_longer_has_ends_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mut sets = plane.told_of_wishes("ams").await;
    // Its tag is there for the moment.
    let wish = plane.wish(json!({"image": "default/web:2"})).await.unwrap();
    assert_eq!(wish.digest.to_string(), GONE);
    let path = format!("{PREWARMS}/{GONE}");
    assert_eq!(plane.ended(&path).await, "the registry no longer has it");
    told(&mut sets, |set| set.wishes.is_empty()).await;
    plane.stop().await;
}

#[tokio::test]
async fn only_administrators_pin_say_where_and_take_a_pin_back() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&report_of("ams", Generation(0), vec![], vec![])).await;
    let mut sets = plane.told_of_wishes("ams").await;
    let pins = |set: &PrewarmSet| set.wishes.iter().map(|wish| wish.pinned).collect::<Vec<_>>();
    let rights = json!({"roles": [{"project": "default", "role": "deploy"}]});
    let token = json!({"name": "deployer", "rights": rights});
    let token: TokenCreated =
        plane.user.call(Method::POST, "/v1/tokens", Some(&token)).await.unwrap();
    let deployer = plane.user.clone().with_token(&token.token);
    let wish = async |client: &longshore_link::Client, wish: Value| {
        client.call::<_, PrewarmView>(Method::POST, PREWARMS, Some(&wish)).await
    };
    let here = json!({"image": "default/web:1", "places": ["ams"]});
    let pin = json!({"image": "default/web:1", "places": ["ams"], "pin": true});
    assert!(!wish(&deployer, here.clone()).await.unwrap().pinned);
    assert_eq!(pins(&told(&mut sets, |set| set.wishes.len() == 1).await), [false]);
    refused(wish(&deployer, pin.clone()).await, ProblemCode::Forbidden, "administrator");
    assert!(wish(&plane.user, pin).await.unwrap().pinned);
    told(&mut sets, |set| pins(set) == [true]).await;

    // Who wishes it there once more leaves it pinned, and has it nowhere else.
    assert!(wish(&deployer, here.clone()).await.unwrap().pinned);
    let everywhere = json!({"image": "default/web:1"});
    refused(wish(&deployer, everywhere.clone()).await, ProblemCode::Forbidden, "room from all");
    let moved = wish(&plane.user, everywhere).await.unwrap();
    assert_eq!((moved.pinned, moved.places), (true, vec![]));

    let path = format!("{PREWARMS}/{DIGEST}");
    let removed = deployer.call::<(), ()>(Method::DELETE, &path, None).await;
    refused(removed, ProblemCode::Forbidden, "administrator");
    plane.user.call::<(), ()>(Method::DELETE, &path, None).await.unwrap();
    assert!(!wish(&deployer, here).await.unwrap().pinned, "it was taken back with the wish");

    // The registry may lose an image that is pinned: the nodes have it.
    let gone = json!({"image": "default/web:2", "pin": true});
    assert_eq!(wish(&plane.user, gone).await.unwrap().digest.to_string(), GONE);
    // This one is looked at after it, and ends.
    let later = "/v1/projects/later/prewarms";
    let merely = json!({"image": "default/web:2"});
    plane.user.call::<_, PrewarmView>(Method::POST, later, Some(&merely)).await.unwrap();
    plane.ended(&format!("{later}/{GONE}")).await;
    let set = told(&mut sets, |set| set.wishes.len() == 2).await;
    assert_eq!(pins(&set), [false, true]);
    plane.stop().await;
}

#[tokio::test]
async fn a_wish_is_refused_to_who_may_not_and_where_it_may_not_be() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    for (location, country) in [("ams", "NL"), ("nyc", "US")] {
        let mut report = report_of(location, AllotmentSet::default().generation, vec![], vec![]);
        report.traits.country = country.parse().ok();
        report.nodes[0].traits = report.traits.clone();
        plane.send(&report).await;
    }
    let invalid = ProblemCode::InvalidRequest;
    refused(plane.wish(json!({})).await, invalid, "either an app or an image");
    let both = json!({"app": "web", "image": "default/web:1"});
    refused(plane.wish(both).await, invalid, "either an app or an image");
    let nowhere = json!({"image": "default/web:1", "places": ["nowhere"]});
    refused(plane.wish(nowhere).await, invalid, "nowhere");
    let none = json!({"image": "default/none:1"});
    refused(plane.wish(none).await, ProblemCode::ImageNotFound, "default/none:1");
    refused(plane.wish(json!({"app": "web"})).await, ProblemCode::NotFound, "web");

    // Of an app that stays in a country nothing goes anywhere else, its image neither.
    let mut document = web();
    document["placement"] = json!({"jurisdiction": ["NL"]});
    plane.deploy(document).await.unwrap();
    for places in [json!([]), json!(["nyc"]), json!(["ams", "nyc"]), json!(["disk=nvme"])] {
        for what in [json!({"app": "web"}), json!({"image": "default/web:1"})] {
            let mut wish = what.clone();
            wish["places"] = places.clone();
            refused(plane.wish(wish).await, invalid, "an app keeps its image there");
        }
    }
    let wish = plane.wish(json!({"app": "web", "places": ["ams"]})).await.unwrap();
    assert_eq!(wish.image, "web r1");

    let rights = json!({"roles": [{"project": "mine", "role": "deploy"}]});
    let token = json!({"name": "mine", "rights": rights});
    let token: TokenCreated =
        plane.user.call(Method::POST, "/v1/tokens", Some(&token)).await.unwrap();
    let mine = plane.user.clone().with_token(&token.token);
    let path = "/v1/projects/mine/prewarms";
    // Nobody is told by that either whether there is such an image.
    for repository in ["default/web", "default/none"] {
        let wish = json!({"image": format!("{repository}:1"), "places": ["ams"]});
        let outcome = mine.call::<_, PrewarmView>(Method::POST, path, Some(&wish)).await;
        let why = format!("no right to pull from {repository}");
        refused(outcome, ProblemCode::Forbidden, &why);
    }
    plane.stop().await;
}
