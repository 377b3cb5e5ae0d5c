//! Secrets, from their setting to the location that needs them.

use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{SecretValues, SecretsRequest};
use longshore_api::v1::{SecretKeyView, SecretRequest, SecretView};
use longshore_link::CallError;
use longshore_types::{Generation, SecretValue, SecretVersion};
use serde_json::json;

use crate::plane::*;

#[tokio::test]
async fn secrets_go_to_the_locations_that_need_them_and_never_back() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let path = "/v1/projects/default/secrets/db";
    let set = async |text: &str| {
        let request = SecretRequest { value: SecretValue::new(text.as_bytes().to_vec()) };
        plane.user.call::<_, SecretView>(Method::PUT, path, Some(&request)).await
    };
    let mut document = web();
    document["secrets"] = json!({"DATABASE_URL": "db"});
    let CallError::Refused(problem) = plane.deploy(document.clone()).await.unwrap_err() else {
        panic!("there is no such secret yet")
    };
    assert!(problem.to_string().contains("longshore secret set db"), "{problem}");
    assert!(set("").await.is_err(), "an empty one");
    assert_eq!(set("first").await.unwrap().version, SecretVersion(1));

    let mut sets = plane.allotments().await;
    let one = plane.deploy(document.clone()).await.unwrap();
    assert_eq!(one.release.secrets, [("db".parse().unwrap(), SecretVersion(1))].into());
    until(&mut sets, |set| set.allotments.len() == 1).await;
    let ask = async |location: &str, version: u64| {
        let request = SecretsRequest {
            project: Default::default(),
            secrets: [("db".parse().unwrap(), SecretVersion(version))].into(),
        };
        let path = format!("/link/locations/{location}/secrets");
        plane.link.call::<_, SecretValues>(Method::POST, &path, Some(&request)).await
    };
    let value = |answer: SecretValues| answer.values.into_values().next().unwrap();
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");
    assert!(ask("sin", 1).await.is_err(), "nothing runs there");

    // A new value is a new release for who deploys again, and nothing for what runs.
    assert_eq!(set("second").await.unwrap().used_by.len(), 1);
    assert!(ask("ams", 2).await.is_err(), "no release there has it");
    let planned = plane.plan(document.clone()).await.unwrap();
    assert_eq!(planned.changes[0].field, "secret_versions.db");
    let two = plane.deploy(document.clone()).await.unwrap();
    assert!(two.changed && !plane.deploy(document.clone()).await.unwrap().changed);
    until(&mut sets, |set| set.allotments[0].release.number == two.release.number).await;
    assert_eq!(value(ask("ams", 2).await.unwrap()).bytes(), b"second");
    plane.rollback(None).await.unwrap();
    until(&mut sets, |set| set.allotments[0].release.number == one.release.number).await;
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");

    // Another key opens all of it, and the old one is gone.
    let before = std::fs::read(dir.path().join("secret-keys.json")).unwrap();
    let rotated: SecretKeyView =
        plane.user.call(Method::POST, "/v1/secrets/rotate-key", None::<&()>).await.unwrap();
    assert_eq!(rotated.resealed, 2);
    assert_ne!(std::fs::read(dir.path().join("secret-keys.json")).unwrap(), before);
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");

    let removed = plane.user.call::<(), ()>(Method::DELETE, path, None).await;
    assert!(matches!(removed, Err(CallError::Refused(p)) if p.code == ProblemCode::Conflict));
    plane.deploy(web()).await.unwrap();
    // The last complete release is none yet, so nothing else holds it.
    plane.user.call::<(), ()>(Method::DELETE, path, None).await.unwrap();
    let back = plane.rollback(Some(1)).await;
    let CallError::Refused(problem) = back.unwrap_err() else { panic!("its secret is gone") };
    assert_eq!(problem.detail, "r1 needs v1 of secret db, which was removed");
    plane.stop().await;
    let store = std::fs::read(dir.path().join("data/store.redb")).unwrap();
    for value in ["first", "second"] {
        let found = store.windows(value.len()).any(|window| window == value.as_bytes());
        assert!(!found, "{value} is in the store");
    }
}
