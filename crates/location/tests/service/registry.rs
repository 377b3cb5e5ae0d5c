//! The registry on another machine: where it is, the global plane says, and nobody else is taken for it.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::Method;
use longshore_api::links::AssignmentSet;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Endpoint, Listener, Refusal, json_lines, now, watch_lines};
use longshore_location::ImageOrigin;
use longshore_trust::{Credentials, Name, RegistryAccess, RegistryTold, RootAuthority};
use longshore_types::Digest;
use serde_json::json;
use sha2::Digest as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::joining::{global, refused, registry};
use crate::{Outside, World, set, until};

/// Serves `router` as who has this name; where, as `host:port`.
fn serve_as(root: &RootAuthority, name: &Name, router: Router, end: &CancellationToken) -> String {
    let any = Endpoint::Tls("127.0.0.1:0".to_owned());
    let listener = Listener::bind("registry", &any).unwrap();
    let address = listener.endpoint().unwrap().authority().to_owned();
    let credentials = Credentials::new(&root.identify(name, now()).unwrap()).unwrap();
    tokio::spawn(listener.serve_with(credentials, router, end.clone()));
    address
}

/// A registry that has a blob which it made of its image, and that blob.
fn converting(held: Router) -> (Router, Digest) {
    let converted = Digest::from_sha256(sha2::Sha256::digest(b"converted").into());
    let artifact = json!({"layers": [{"digest": converted}]}).to_string();
    let give = get(move || async move { artifact });
    (held.route("/v2/_longshore/converted/default/web", give), converted)
}

/// Asks, as a node does, what is converted of an image.
async fn ask_converted(world: &World, image: &Digest) -> Result<http::StatusCode, CallError> {
    let path = format!("/link/nodes/n1/images/converted?repository=default/web&digest={image}");
    let answer = world.location.send(Method::GET, &path, None::<&()>).await?;
    Ok(answer.status())
}

/// Asks, as a node does, for a blob of an image.
async fn blob_of(world: &World, digest: &Digest) -> Result<bytes::Bytes, CallError> {
    let path = format!("/link/nodes/n1/images/blob?repository=default/web&digest={digest}");
    let answer = world.location.send(Method::GET, &path, None::<&()>).await?;
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    Ok(bytes.to_bytes())
}

#[tokio::test]
async fn images_come_from_the_registry_that_is_told_of_and_from_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = Arc::new(RootAuthority::open(&dir.path().join("root.json"), now()).unwrap());
    let (tell, told) = watch::channel(Arc::new(RegistryTold { access: None }));
    let end = CancellationToken::new();
    let until_end = end.clone();
    let lines = get(move || async move { json_lines(watch_lines(told), until_end) });
    let nowhere = get(|| async {
        let why = Problem::new(ProblemCode::Unavailable, "no registry has joined");
        Err::<axum::Json<RegistryAccess>, _>(Refusal(why))
    });
    let more = global(&root)
        .route("/link/locations/ams/registry/told", lines)
        .route("/link/locations/ams/registry", nowhere);
    let outside = Outside { images: Some(ImageOrigin::Elsewhere), ..Outside::default() };
    let world = World::start_as(dir.path(), outside, more).await;
    let (held, image, layer) = registry(b"the layer");
    let (held, converted) = converting(held);
    let mut wanted = set(5, 1);
    let allotment = &mut Arc::make_mut(&mut wanted).allotments[0];
    Arc::make_mut(&mut allotment.release).image_digest = image;
    world.node_says(&[]).await;
    world.allot.send_replace(wanted);
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    until(&mut sets, |set| set.assignments.len() == 1).await;

    let ask = async |digest: &Digest| blob_of(&world, digest).await;
    // What it is told takes a moment to arrive.
    let ask_until = async |holds: &dyn Fn(&Result<bytes::Bytes, CallError>) -> bool| {
        let search = async {
            loop {
                let answer = ask(&layer).await;
                if holds(&answer) {
                    return answer;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), search).await.expect("in time")
    };
    let says = |answer: &Result<bytes::Bytes, CallError>, part: &str| matches!(answer, Err(CallError::Refused(problem)) if problem.detail.contains(part));
    let answer = ask_until(&|answer| says(answer, "no registry has joined")).await;
    refused(answer, ProblemCode::Unavailable);

    let told_of = |address: &str, is_own| {
        let (address, token) = (address.to_owned(), "lsh_t".to_owned().into());
        Arc::new(RegistryTold { access: Some(RegistryAccess { address, token, is_own }) })
    };
    let at = |address: &str| told_of(address, false);
    let address = serve_as(&root, &Name::Registry, held.clone(), &end);
    tell.send_replace(at(&address));
    assert_eq!(ask_until(&Result::is_ok).await.unwrap(), "the layer");

    // What it converted is used where it runs beside the control plane alone, for nobody could check it.
    refused(ask_converted(&world, &image).await, ProblemCode::NotFound);
    refused(ask(&converted).await, ProblemCode::Forbidden);
    tell.send_replace(told_of(&address, true));
    let told = async {
        while ask_converted(&world, &image).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), told).await.expect("in time");
    assert_eq!(ask(&converted).await.unwrap(), "converted");
    let others = Digest::from_sha256(sha2::Sha256::digest(b"of others").into());
    refused(ask(&others).await, ProblemCode::Forbidden);

    // Another role of this world at that address is not it, nor is the registry of another world.
    let other = RootAuthority::open(&dir.path().join("other.json"), now()).unwrap();
    for (root, name) in [(&*root, Name::Global), (&other, Name::Registry)] {
        tell.send_replace(at(&serve_as(root, &name, held.clone(), &end)));
        let answer = ask_until(&Result::is_err).await;
        refused(answer, ProblemCode::Unavailable);
        tell.send_replace(at(&address));
        ask_until(&Result::is_ok).await.unwrap();
    }

    // One that was removed is not called any more, though it would answer.
    tell.send_replace(Arc::new(RegistryTold { access: None }));
    let answer = ask_until(&|answer| says(answer, "no registry has joined")).await;
    refused(answer, ProblemCode::Unavailable);

    tell.send_replace(at(&address));
    ask_until(&Result::is_ok).await.unwrap();
    world.stop().await;
    ask_without_being_told(dir.path(), &root, &layer).await;
    end.cancel();
}

/// Where the registry is outlives a start while the control plane says nothing of it.
async fn ask_without_being_told(dir: &Path, root: &Arc<RootAuthority>, layer: &Digest) {
    let outside = Outside { images: Some(ImageOrigin::Elsewhere), ..Outside::default() };
    let world = World::start_as(dir, outside, global(root)).await;
    world.node_says(&[]).await;
    assert_eq!(blob_of(&world, layer).await.unwrap(), "the layer");
    world.stop().await;
}
