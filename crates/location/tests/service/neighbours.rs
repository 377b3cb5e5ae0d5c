//! Nodes that give each other parts of images: who is named to whom, and for whom the location vouches.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, AssignmentSet, ImageNeighbour, ImageNeighbours, Vouched};
use longshore_link::{CallError, Client, Endpoint, Listener};
use longshore_trust::{Credentials, Identity};
use longshore_types::{Cordon, DIFF_ID_ANNOTATION, Digest, Timestamp};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::joining::{OTHER_SECRET, SECRET, Scene, refused, registry};
use crate::{report, set, until};

/// The layer that was converted of the image.
fn layer() -> Digest {
    Digest::from_sha256([8; 32])
}

/// A gate of a node that shows its certificate; where it is.
fn gate(identity: &Identity, end: &CancellationToken) -> String {
    let any = Endpoint::Tls("127.0.0.1:0".to_owned());
    let listener = Listener::bind("gate", &any).unwrap();
    let at = listener.endpoint().unwrap().to_string();
    let credentials = Credentials::new(identity).unwrap();
    tokio::spawn(listener.serve_with(credentials, Router::new(), end.clone()));
    at
}

async fn says(node: &Client, name: &str, gate: &str, images: &[Digest]) {
    let mut report = report(name, gate, &[]);
    report.images = images.to_vec();
    let path = format!("/link/nodes/{name}/report");
    node.call::<_, Value>(Method::POST, &path, Some(&report)).await.unwrap();
}

async fn asks(node: &Client, name: &str, image: &Digest) -> Result<Vec<ImageNeighbour>, CallError> {
    let path =
        format!("/link/nodes/{name}/images/neighbours?repository=default/web&digest={image}");
    Ok(node.get::<ImageNeighbours>(&path).await?.nodes)
}

async fn hears(node: &Client, name: &str, image: &Digest, expected: &[ImageNeighbour]) {
    let search = async {
        loop {
            let told = asks(node, name, image).await.unwrap();
            if told == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), search).await.expect("in time");
}

#[tokio::test]
async fn nodes_hear_of_each_other_and_each_may_have_what_is_its() {
    let (held, image, _) = registry(b"the layer");
    let annotations = json!({DIFF_ID_ANNOTATION: layer().to_string()});
    let part = json!({"digest": Digest::from_sha256([9; 32]), "annotations": annotations});
    let artifact = json!({"layers": [part]}).to_string();
    let give = get(move || async move { artifact });
    let scene = Scene::start(held.route("/v2/_longshore/converted/default/web", give)).await;
    let second = scene.join("n2", SECRET).await.unwrap();
    let third = scene.join("n3", OTHER_SECRET).await.unwrap();
    let (n2, n3) = (scene.with(&second), scene.with(&third));
    let end = CancellationToken::new();
    let (gate2, gate3) = (gate(&second, &end), gate(&third, &end));
    says(&n2, "n2", &gate2, &[image]).await;
    // Nobody listens there, as behind a NAT.
    says(&n3, "n3", "https://127.0.0.1:1", &[]).await;
    refused(asks(&n2, "n2", &image).await, ProblemCode::Forbidden);
    let vouch = async |by: &Client, path: &str| by.get::<Vouched>(path).await;
    let of_n3 = format!("/link/nodes/n2/neighbours/n3?layer={}", layer());
    refused(vouch(&n2, &of_n3).await, ProblemCode::Forbidden);

    let wanted = |generation, cordons| {
        let mut wanted = AllotmentSet::clone(&set(generation, 2));
        let allotment = &mut wanted.allotments[0];
        Arc::make_mut(&mut allotment.release).image_digest = image;
        Arc::new(AllotmentSet { cordons, ..wanted })
    };
    scene.world.allot.send_replace(wanted(5, Default::default()));
    for (node, path) in [(&n2, "/link/nodes/n2/assignments"), (&n3, "/link/nodes/n3/assignments")] {
        let mut sets = node.watch::<AssignmentSet>(path).await.unwrap();
        until(&mut sets, |set| set.assignments.len() == 1).await;
    }
    let named = |node: &str, gate: &str, has_all| {
        let (node, gate) = (node.parse().unwrap(), gate.to_owned());
        ImageNeighbour { node, gate, has_all }
    };
    hears(&n3, "n3", &image, &[named("n2", &gate2, true)]).await;
    hears(&n2, "n2", &image, &[]).await;
    says(&n3, "n3", &gate3, &[]).await;
    hears(&n2, "n2", &image, &[named("n3", &gate3, false)]).await;
    // Each asks for itself, and is told of what is its alone.
    refused(asks(&n2, "n3", &image).await, ProblemCode::Forbidden);
    let other = Digest::from_sha256([1; 32]);
    refused(asks(&n2, "n2", &other).await, ProblemCode::Forbidden);

    let vouched = vouch(&n2, &of_n3).await.unwrap();
    assert_eq!(vouched.key, third.public_key().unwrap().fingerprint().to_string());
    refused(vouch(&n3, &of_n3).await, ProblemCode::Forbidden);
    for (of, code) in [
        (format!("n3?layer={other}"), ProblemCode::Forbidden),
        (format!("n1?layer={}", layer()), ProblemCode::Forbidden),
        (format!("n9?layer={}", layer()), ProblemCode::Forbidden),
    ] {
        refused(vouch(&n2, &format!("/link/nodes/n2/neighbours/{of}")).await, code);
    }
    for of in ["n3", "n3?layer=nonsense", "N!?layer=x"] {
        let error = vouch(&n2, &format!("/link/nodes/n2/neighbours/{of}")).await.unwrap_err();
        assert!(matches!(error, CallError::Status { status: 400, .. }), "{of}: {error:?}");
    }

    // Who was removed is vouched for no more.
    let cordon = Cordon { since: Timestamp(0), by: None, drains: true, removed: true };
    let cordons = [("n3".parse().unwrap(), cordon)].into();
    scene.world.allot.send_replace(wanted(6, cordons));
    let search = async {
        while vouch(&n2, &of_n3).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), search).await.expect("in time");
    refused(vouch(&n2, &of_n3).await, ProblemCode::Forbidden);
    hears(&n2, "n2", &image, &[]).await;
    scene.end().await;
    end.cancel();
}
