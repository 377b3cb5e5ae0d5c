use serde_json::{Value, json};

use super::*;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn descriptor(letter: &str) -> Value {
    json!({"mediaType": "t", "digest": format!("sha256:{}", letter.repeat(64)), "size": 3})
}

fn image() -> Value {
    json!({"schemaVersion": 2, "config": descriptor("a"), "layers": [descriptor("b")]})
}

fn index() -> Value {
    json!({"schemaVersion": 2, "manifests": [descriptor("c")]})
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

fn parse(content_type: Option<&str>, document: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(content_type, document.to_string().as_bytes())
}

#[test]
fn reads_what_a_manifest_refers_to() {
    let hex = |references: &[Reference]| -> String {
        references.iter().map(|r| r.digest.hex().remove(0)).collect()
    };
    let foreign = json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": descriptor("f")["digest"], "size": 1, "urls": ["http://example.com/"]});
    for (content_type, document, blobs, manifests) in [
        (Some(IMAGE), image(), "ab", ""),
        (Some(DOCKER), image(), "ab", ""),
        (None, with(image(), "mediaType", json!(DOCKER)), "ab", ""),
        (Some(IMAGE), with(image(), "mediaType", json!(IMAGE)), "ab", ""),
        (Some(IMAGE), with(image(), "layers", json!([])), "a", ""),
        (Some(IMAGE), with(image(), "layers", json!([foreign])), "a", ""),
        (Some(IMAGE), with(image(), "subject", descriptor("d")), "ab", ""),
        (Some(INDEX), index(), "", "c"),
        (Some(INDEX), with(index(), "annotations", json!({"a": "b"})), "", "c"),
    ] {
        let manifest = parse(content_type, &document).unwrap();
        assert_eq!(hex(&manifest.blobs), blobs, "{document}");
        assert_eq!(hex(&manifest.manifests), manifests, "{document}");
    }
    let with_parameter = format!("{IMAGE}; charset=utf-8");
    assert_eq!(parse(Some(&with_parameter), &image()).unwrap().kind, Kind::OciManifest);
}

#[test]
fn refuses_what_is_ambiguous_or_broken() {
    let no_digest = json!({"mediaType": "t", "digest": "sha256:xy", "size": 3});
    let negative = json!({"mediaType": "t", "digest": descriptor("a")["digest"], "size": -1});
    for (content_type, document, expected) in [
        (Some("text/plain"), image(), "media type"),
        (Some("application/vnd.docker.distribution.manifest.v1+json"), image(), "media type"),
        (None, image(), "must say which kind"),
        (Some(INDEX), with(index(), "mediaType", json!(IMAGE)), "must be equal"),
        (Some(IMAGE), with(image(), "schemaVersion", json!(1)), "schemaVersion is 1"),
        (Some(IMAGE), index(), "must have config and layers"),
        (Some(INDEX), image(), "must have manifests"),
        (Some(IMAGE), with(image(), "manifests", json!([])), "must not have manifests"),
        (Some(INDEX), with(index(), "layers", json!([])), "must not have config"),
        (Some(IMAGE), with(image(), "config", no_digest.clone()), "not a digest"),
        (Some(IMAGE), with(image(), "subject", no_digest), "not a digest"),
        (Some(IMAGE), with(image(), "config", negative), "not a manifest"),
        (Some(IMAGE), json!([]), "not a manifest"),
        (Some(IMAGE), json!({}), "not a manifest"),
    ] {
        let error = parse(content_type, &document).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}: {document}");
    }
    let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
    assert!(Manifest::parse(Some(INDEX), twice.as_bytes()).is_err());
}
