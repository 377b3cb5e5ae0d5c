//! What is about a manifest, listed, filtered, page by page, and gone with it.

use super::*;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An artifact about a subject: its text and digest.
fn artifact(subject: &str, kind: Option<&str>, note: &str) -> (String, String) {
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": {"mediaType": "application/vnd.test.config", "digest": digest(b"{}"), "size": 2},
        "layers": [],
        "subject": {"mediaType": IMAGE, "digest": subject, "size": 1},
        "annotations": {"note": note},
    });
    if let Some(kind) = kind {
        manifest["artifactType"] = json!(kind);
    }
    let text = manifest.to_string();
    let digest = digest(text.as_bytes());
    (text, digest)
}

async fn push(registry: &Harness, text: &str, media_type: &str) -> Answer {
    let path = format!("/v2/a/b/manifests/{}", digest(text.as_bytes()));
    let answer =
        registry.send("PUT", &path, &[("content-type", media_type)], text.to_owned()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer
}

/// The descriptors about a subject.
async fn list(registry: &Harness, subject: &str, query: &str) -> (Vec<Value>, Answer) {
    let answer = registry.get(&format!("/v2/a/b/referrers/{subject}{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), INDEX_TYPE);
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(INDEX_TYPE)));
    (index["manifests"].as_array().unwrap().clone(), answer)
}

#[tokio::test]
async fn they_are_listed_with_type_and_annotations_and_filtered() {
    let registry = Harness::new().await;
    registry.push_blob("a/b", b"{}").await;
    // The subject need not exist, and need not ever.
    let subject = digest(b"a manifest that comes later");
    assert_eq!(list(&registry, &subject, "").await.0, Vec::<Value>::new());

    let (signature, signature_digest) = artifact(&subject, Some("test/signature"), "one");
    let (plain, plain_digest) = artifact(&subject, None, "two");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "artifactType": "test/sig+more",
        "manifests": [],
        "subject": {"mediaType": IMAGE, "digest": subject, "size": 1},
    })
    .to_string();
    for (text, media_type) in [(&signature, IMAGE), (&plain, IMAGE), (&index, INDEX)] {
        let answer = push(&registry, text, media_type).await;
        assert_eq!(answer.header("oci-subject"), subject);
    }
    let (mut all, answer) = list(&registry, &subject, "").await;
    assert_eq!(answer.header("oci-filters-applied"), "");
    let mut expected = vec![
        json!({"mediaType": IMAGE, "digest": signature_digest, "size": signature.len(),
            "artifactType": "test/signature", "annotations": {"note": "one"}}),
        json!({"mediaType": IMAGE, "digest": plain_digest, "size": plain.len(),
            "artifactType": "application/vnd.test.config", "annotations": {"note": "two"}}),
        json!({"mediaType": INDEX, "digest": digest(index.as_bytes()), "size": index.len(),
            "artifactType": "test/sig+more"}),
    ];
    let by_digest = |one: &Value| one["digest"].as_str().unwrap().to_owned();
    all.sort_by_key(by_digest);
    expected.sort_by_key(by_digest);
    assert_eq!(all, expected);

    for (query, n) in [
        ("?artifactType=test/signature", 1),
        ("?artifactType=test%2Fsig%2Bmore", 1),
        ("?artifactType=none", 0),
    ] {
        let (found, answer) = list(&registry, &subject, query).await;
        assert_eq!(found.len(), n, "{query}");
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    }
}

#[tokio::test]
async fn they_come_page_by_page() {
    let registry = Harness::new().await;
    registry.push_blob("a/b", b"{}").await;
    let subject = digest(b"subject");
    for n in 0..5 {
        let (text, _) = artifact(&subject, Some("test/a+b"), &n.to_string());
        push(&registry, &text, IMAGE).await;
    }
    let (all, _) = list(&registry, &subject, "").await;
    let mut query = "?artifactType=test%2Fa%2Bb&n=2".to_owned();
    let mut pages = Vec::new();
    loop {
        let (page, answer) = list(&registry, &subject, &query).await;
        pages.push(page);
        let Some(link) = answer.header("link").strip_suffix(">; rel=\"next\"") else {
            break;
        };
        query = link.strip_prefix(&format!("</v2/a/b/referrers/{subject}")).unwrap().to_owned();
    }
    let sizes: Vec<_> = pages.iter().map(Vec::len).collect();
    assert_eq!((sizes, pages.concat()), (vec![2, 2, 1], all));
    let path = format!("/v2/a/b/referrers/{subject}?n=many");
    registry.get(&path).await.assert_refused(400, "PAGINATION_NUMBER_INVALID");
}

#[tokio::test]
async fn an_answer_is_no_larger_than_a_client_takes() {
    let registry = Harness::new().await;
    registry.push_blob("a/b", b"{}").await;
    let subject = digest(b"subject");
    for n in 0..3 {
        let (text, _) = artifact(&subject, None, &n.to_string().repeat(2_000_000));
        push(&registry, &text, IMAGE).await;
    }
    let (first, answer) = list(&registry, &subject, "").await;
    assert_eq!(first.len(), 2);
    let link = answer.header("link").strip_prefix('<').unwrap();
    let rest = registry.get(link.strip_suffix(">; rel=\"next\"").unwrap()).await;
    assert_eq!(rest.json()["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn they_go_when_they_are_deleted_and_come_back() {
    let registry = Harness::new().await;
    registry.push_blob("a/b", b"{}").await;
    let subject = registry.push_image("a/b", "1", b"layer").await;
    let (text, about) = artifact(&subject, None, "");
    for _ in 0..2 {
        push(&registry, &text, IMAGE).await;
        assert_eq!(list(&registry, &subject, "").await.0.len(), 1);
        let path = format!("/v2/a/b/manifests/{about}");
        assert_eq!(registry.send("DELETE", &path, &[], "").await.status, 202);
        assert_eq!(list(&registry, &subject, "").await.0.len(), 0);
    }
    // They are about the digest, and stay when what has it goes.
    push(&registry, &text, IMAGE).await;
    let path = format!("/v2/a/b/manifests/{subject}");
    assert_eq!(registry.send("DELETE", &path, &[], "").await.status, 202);
    assert_eq!(list(&registry, &subject, "").await.0.len(), 1);
    // Another repository knows nothing of them.
    let elsewhere = registry.get(&format!("/v2/a/c/referrers/{subject}")).await;
    assert_eq!(elsewhere.json()["manifests"], json!([]));
}

/// A client that was made for registries without this endpoint keeps the list itself, in an index
/// under a tag made of the digest.
#[tokio::test]
async fn a_list_that_a_client_keeps_under_a_tag_is_an_index_like_any_other() {
    let registry = Harness::new().await;
    registry.push_blob("a/b", b"{}").await;
    let subject = digest(b"subject");
    let (text, about) = artifact(&subject, None, "");
    push(&registry, &text, IMAGE).await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [descriptor(&about, text.len())]})
    .to_string();
    let path = format!("/v2/a/b/manifests/{}", subject.replace(':', "-"));
    let answer = registry.send("PUT", &path, &[("content-type", INDEX)], index.clone()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(registry.get(&path).await.text(), index);
    assert_eq!(registry.send("DELETE", &path, &[], "").await.status, 202);
    assert_eq!(list(&registry, &subject, "").await.0.len(), 1);
}
