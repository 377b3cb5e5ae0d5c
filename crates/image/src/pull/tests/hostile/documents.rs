//! Manifests, indexes and configs that lie, contradict themselves or are too much.

use crate::config::host_architecture;
use crate::manifest::{INDEX_TYPES, MANIFEST_TYPES};
use crate::unpack::tests::digest_of;

use super::*;

pub(super) fn cases() -> Vec<Case> {
    [manifests(), indexes(), sizes_and_digests(), configs(), environments()]
        .into_iter()
        .flatten()
        .collect()
}

fn one_layer() -> ImageParts {
    layer(Archive::default().file("f", b"x"))
}

/// A manifest with a piece of its text replaced, which must be there.
pub(super) fn replaced(text: &str, from: &str, to: &str) -> Vec<u8> {
    assert!(text.contains(from), "no {from:?} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

/// An object with one more key before its end.
fn with_key(text: &str, key: &str) -> Vec<u8> {
    format!("{},{key}}}", text.strip_suffix('}').unwrap()).into_bytes()
}

pub(super) fn changed(text: &str, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut document = serde_json::from_str(text).unwrap();
    change(&mut document);
    document.to_string().into_bytes()
}

macro_rules! manifest {
    ($edit:expr) => {
        |_| one_layer().edit_manifest($edit)
    };
}

macro_rules! config {
    ($edit:expr) => {
        |_| one_layer().edit_config($edit)
    };
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn manifests() -> Vec<Case> {
    const MANIFEST: &str = "the manifest sha256:";
    vec![
        refused(
            "a key of the manifest twice",
            manifest!(|text| with_key(text, r#""layers":[]"#)),
            &[MANIFEST, "duplicate field `layers`"],
        ),
        refused(
            "a key of the manifest in another case",
            manifest!(|text| with_key(text, r#""Layers":[]"#)),
            &[MANIFEST, "\"Layers\" is \"layers\" to some programs"],
        ),
        refused(
            "a key of the manifest with a letter that folds",
            manifest!(|text| with_key(text, "\"layer\u{17f}\":[]")),
            &[MANIFEST, "is \"layers\" to some programs"],
        ),
        refused(
            "a key of a descriptor in another case",
            manifest!(|text| replaced(text, r#""size""#, r#""Size":1,"size""#)),
            &[MANIFEST, "\"Size\" is \"size\""],
        ),
        refused(
            "a manifest that is also an index",
            manifest!(|text| with_key(text, r#""manifests":[]"#)),
            &[MANIFEST, "says that it is \"an index\""],
        ),
        refused(
            "a manifest that says it is an index",
            manifest!(|text| replaced(text, MANIFEST_TYPES[0], INDEX_TYPES[0])),
            &[MANIFEST, "stored as", "says that it is"],
        ),
        refused_source(
            "a manifest that is stored as an index",
            |source| {
                let digest = one_layer().publish(source);
                source.restate_manifest(&digest, INDEX_TYPES[0]);
                digest
            },
            &[MANIFEST, "it is stored as"],
        ),
        refused_source(
            "a manifest that is stored as something else",
            |source| {
                let parts = one_layer();
                let digest = parts.edit_manifest(|text| {
                    changed(text, |document| document["mediaType"] = "text/html".into())
                });
                let digest = digest.publish(source);
                source.restate_manifest(&digest, "text/html");
                digest
            },
            &[MANIFEST, "\"text/html\" is not one of an image"],
        ),
        refused(
            "a chart instead of a config",
            manifest!(|text| {
                replaced(text, images::CONFIG, "application/vnd.cncf.helm.config.v1+json")
            }),
            &[MANIFEST, "helm.config", "not a container image"],
        ),
        refused(
            "an encrypted layer",
            manifest!(|text| replaced(text, "layer.v1.tar", "layer.v1.tar+gzip+encrypted")),
            &[MANIFEST, "tar+gzip+encrypted"],
        ),
        refused(
            "a manifest that is no JSON",
            manifest!(|_| b"\x7fELF".to_vec()),
            &[MANIFEST, "line 1"],
        ),
        refused("an empty manifest", manifest!(|_| Vec::new()), &[MANIFEST, "EOF"]),
        refused("a manifest that is a list", manifest!(|_| b"[]".to_vec()), &[MANIFEST]),
        refused(
            "two manifests in one",
            manifest!(|text| text.repeat(2).into_bytes()),
            &[MANIFEST, "trailing"],
        ),
        // Nobody looks into what has no meaning here, so its depth costs nothing.
        inside(
            "a manifest with deep brackets",
            manifest!(|text| {
                let deep = "[".repeat(100_000) + &"]".repeat(100_000);
                with_key(text, &format!(r#""annotations":{deep}"#))
            }),
            |tree| tree.assert_file("f", b"x"),
        ),
        refused(
            "a manifest that is not UTF-8",
            manifest!(|text| [text.as_bytes(), b"\xff"].concat()),
            &[MANIFEST],
        ),
        refused(
            "a manifest of five mebibytes",
            manifest!(|text| [text.as_bytes(), &vec![b' '; 5 << 20]].concat()),
            &["the image sha256:", "more than 4194304 bytes in the manifest"],
        ),
        refused(
            "a media type of a mebibyte",
            manifest!(|text| replaced(text, "layer.v1.tar", &"x".repeat(1 << 20))),
            &[MANIFEST, "a layer has the media type", "bytes)"],
        ),
    ]
}

fn index(source: &FakeSource, entries: serde_json::Value) -> Digest {
    let document = serde_json::json!({ "mediaType": INDEX_TYPES[0], "manifests": entries });
    source.add_manifest(INDEX_TYPES[0], document.to_string().into_bytes())
}

fn entry(
    kind: &str,
    digest: &Digest,
    size: u64,
    os: &str,
    architecture: &str,
) -> serde_json::Value {
    serde_json::json!({
        "mediaType": kind, "digest": digest, "size": size,
        "platform": { "os": os, "architecture": architecture },
    })
}

fn indexes() -> Vec<Case> {
    vec![
        refused_source(
            "an index without an image for this machine",
            |source| {
                let digest = one_layer().publish(source);
                let other = entry(MANIFEST_TYPES[0], &digest, 1, "linux", "z80");
                index(source, vec![other; 5000].into())
            },
            &["the manifest sha256:", "there is no image for linux/", "linux/z80"],
        ),
        refused_source(
            "an index that leads to an index",
            |source| {
                let digest = one_layer().publish(source);
                let inner = source.publish_index(&digest);
                let host = host_architecture();
                index(source, vec![entry(INDEX_TYPES[0], &inner, 1, "linux", host)].into())
            },
            &["the manifest sha256:", "image.index"],
        ),
        refused_source(
            "an index that leads to an index in disguise",
            |source| {
                let digest = one_layer().publish(source);
                let inner = source.publish_index(&digest);
                let size = source.manifest_size(&inner);
                let host = host_architecture();
                index(source, vec![entry(MANIFEST_TYPES[0], &inner, size, "linux", host)].into())
            },
            &["the manifest sha256:", "an index inside an index"],
        ),
        refused_source(
            "an index that lies about a size",
            |source| {
                let digest = one_layer().publish(source);
                let host = host_architecture();
                index(source, vec![entry(MANIFEST_TYPES[0], &digest, 1, "linux", host)].into())
            },
            &["the manifest sha256:", "came as"],
        ),
        refused_source(
            "an index of two images without a platform",
            |source| {
                let digest = one_layer().publish(source);
                let bare = serde_json::json!({
                    "mediaType": MANIFEST_TYPES[0], "digest": digest, "size": 1,
                });
                index(source, vec![bare.clone(), bare].into())
            },
            &["there is no image for linux/"],
        ),
        refused_source(
            "an index whose architecture is said twice",
            |source| {
                let digest = one_layer().publish(source);
                let mut entry = entry(MANIFEST_TYPES[0], &digest, 1, "linux", "z80");
                entry["platform"]["Architecture"] = host_architecture().into();
                index(source, vec![entry].into())
            },
            &["the manifest sha256:", "\"Architecture\""],
        ),
        refused_source(
            "an index of nothing",
            |source| index(source, serde_json::json!([])),
            &["there is no image for linux/"],
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn sizes_and_digests() -> Vec<Case> {
    vec![
        refused_source(
            "a manifest with another digest",
            |source| {
                let digest = one_layer().publish(source);
                source.replace_manifest(&digest, |bytes| bytes.push(b' '));
                digest
            },
            &["the manifest sha256:", "with the digest sha256:"],
        ),
        refused_source(
            "a config with another digest",
            |source| {
                let parts = one_layer();
                let digest = parts.clone().publish(source);
                source.replace_blob(&parts.config_digest(), |blob| blob[0] = b' ');
                digest
            },
            &["the config sha256:", "with the digest sha256:"],
        ),
        refused_source(
            "a config that does not end",
            |source| {
                let parts = one_layer();
                let digest = parts.clone().publish(source);
                source.replace_blob(&parts.config_digest(), |blob| blob.resize(1 << 20, b' '));
                digest
            },
            &["the config sha256:", "came as"],
        ),
        refused(
            "a config of a tebibyte",
            manifest!(|text| changed(text, |document| {
                document["config"]["size"] = (1_u64 << 40).into();
            })),
            &["more than 4194304 bytes in the config"],
        ),
        refused(
            "layers whose sizes overflow together",
            |_| {
                one_layer().gzip(Archive::default()).edit_manifest(|text| {
                    changed(text, |document| {
                        for idx in [0, 1] {
                            document["layers"][idx]["size"] = u64::MAX.into();
                        }
                    })
                })
            },
            &["the image sha256:", "more than 33554432 bytes in one layer"],
        ),
        refused(
            "a negative size",
            manifest!(|text| changed(text, |document| document["layers"][0]["size"] = (-1).into())),
            &["the manifest sha256:", "-1"],
        ),
        refused(
            "a size that is a text",
            manifest!(|text| changed(text, |document| document["layers"][0]["size"] = "1".into())),
            &["the manifest sha256:", "string"],
        ),
        refused(
            "a size that is one less",
            manifest!(|text| changed(text, |document| {
                let size = document["layers"][0]["size"].as_u64().unwrap();
                document["layers"][0]["size"] = (size - 1).into();
            })),
            &["unpacking the layer sha256:", "has 2048 bytes, not 2047"],
        ),
        refused(
            "a size that is one more",
            manifest!(|text| changed(text, |document| {
                let size = document["layers"][0]["size"].as_u64().unwrap();
                document["layers"][0]["size"] = (size + 1).into();
            })),
            &["unpacking the layer sha256:", "has 2048 bytes, not 2049"],
        ),
        refused(
            "a digest that is a path",
            manifest!(|text| changed(text, |document| {
                document["layers"][0]["digest"] = "sha256:../../../etc/passwd".into();
            })),
            &["the manifest sha256:", "a descriptor's digest", "../../../etc/passwd"],
        ),
        refused(
            "a digest of another algorithm",
            manifest!(|text| changed(text, |document| {
                document["config"]["digest"] = format!("md5:{}", "0".repeat(32)).into();
            })),
            &["the manifest sha256:", "a descriptor's digest", "md5:"],
        ),
        refused(
            "another DiffID",
            |_| one_layer().diff_ids(&[digest_of(b"another")]),
            &["unpacking the layer sha256:", "the uncompressed layer has the digest"],
        ),
        refused(
            "fewer DiffIDs than layers",
            |_| one_layer().diff_ids(&[]),
            &["the manifest has 1 layers, the config describes 0"],
        ),
        refused(
            "more DiffIDs than layers",
            |_| one_layer().diff_ids(&[digest_of(b"1"), digest_of(b"2")]),
            &["the manifest has 1 layers, the config describes 2"],
        ),
        refused(
            "five thousand layers",
            |_| (0..5000).fold(ImageParts::default(), |parts, _| parts.gzip(Archive::default())),
            &["the image sha256:", "more than 499 layers"],
        ),
        refused(
            "a foreign layer that lies elsewhere",
            manifest!(|text| changed(text, |document| {
                let layer = &mut document["layers"][0];
                layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar".into();
                layer["digest"] = digest_of(b"elsewhere").to_string().into();
                layer["urls"] = serde_json::json!(["http://127.0.0.1:1/latest/meta-data"]);
            })),
            &["fetching the layer sha256:", "no such blob"],
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn configs() -> Vec<Case> {
    const CONFIG: &str = "the image config sha256:";
    vec![
        refused("a config that is no JSON", config!(|_| b"no".to_vec()), &[CONFIG, "line 1"]),
        refused(
            "an empty config",
            config!(|_| b"{}".to_vec()),
            &[CONFIG, "missing field `rootfs`"],
        ),
        refused(
            "a config with deep brackets",
            config!(|text| with_key(text, &format!(r#""history":{}"#, "[".repeat(100_000)))),
            &[CONFIG],
        ),
        refused(
            "a config that is not UTF-8",
            config!(|text| {
                let (before, after) = text.split_once("/bin/sh").unwrap();
                [before.as_bytes(), b"\xff", after.as_bytes()].concat()
            }),
            &[CONFIG, "unicode"],
        ),
        refused(
            "a key of the config twice",
            config!(|text| with_key(text, r#""config":{"User":"0"}"#)),
            &[CONFIG, "duplicate field `config`"],
        ),
        refused(
            "a key of the config in another case",
            config!(|text| replaced(text, r#""Cmd""#, r#""cmd":["/evil"],"Cmd""#)),
            &[CONFIG, "\"cmd\" is \"Cmd\" to some programs"],
        ),
        refused(
            "DiffIDs in another case",
            config!(|text| replaced(text, r#""diff_ids""#, r#""Diff_IDs":[],"diff_ids""#)),
            &[CONFIG, "\"Diff_IDs\""],
        ),
        refused(
            "a DiffID that is a path",
            config!(|text| changed(text, |config| {
                config["rootfs"]["diff_ids"][0] = "../../etc".into();
            })),
            &[CONFIG, "the DiffID of a layer", "../../etc"],
        ),
        refused(
            "a root file system that is no layers",
            config!(|text| changed(text, |config| config["rootfs"]["type"] = "zfs".into())),
            &[CONFIG, "\"zfs\""],
        ),
        refused(
            "another architecture",
            |_| one_layer().architecture("z80"),
            &[CONFIG, "the image is for linux/z80"],
        ),
        refused(
            "another system",
            config!(|text| changed(text, |config| config["os"] = "windows".into())),
            &[CONFIG, "the image is for windows/"],
        ),
        refused(
            "a command that is a text",
            config!(|text| changed(text, |config| config["config"]["Cmd"] = "/bin/sh".into())),
            &[CONFIG, "string"],
        ),
        refused(
            "a user that is a number",
            config!(|text| changed(text, |config| config["config"]["User"] = (-1).into())),
            &[CONFIG, "-1"],
        ),
        refused(
            "a user with NUL",
            config!(|text| changed(text, |config| config["config"]["User"] = "a\0b".into())),
            &[CONFIG, "User", "NUL"],
        ),
        refused(
            "a working directory with NUL",
            config!(|text| changed(text, |config| config["config"]["WorkingDir"] = "/\0".into())),
            &[CONFIG, "WorkingDir", "NUL"],
        ),
        refused(
            "a port that is none",
            config!(|text| changed(text, |config| {
                config["config"]["ExposedPorts"] = serde_json::json!({"99999/tcp": {}});
            })),
            &[CONFIG, "ExposedPorts", "99999/tcp"],
        ),
    ]
}

fn environments() -> Vec<Case> {
    fn env(text: &str, lines: Vec<String>) -> Vec<u8> {
        changed(text, |config| config["config"]["Env"] = lines.into())
    }
    const CONFIG: &str = "the image config sha256:";
    vec![
        refused(
            "a variable with NUL",
            config!(|text| env(text, vec!["A=b\0c".to_owned()])),
            &[CONFIG, "Env", "NUL"],
        ),
        refused(
            "a variable without a value",
            config!(|text| env(text, vec!["LD_PRELOAD".to_owned()])),
            &[CONFIG, "Env", "LD_PRELOAD", "NAME=value"],
        ),
        refused(
            "a variable without a name",
            config!(|text| env(text, vec!["=x".to_owned()])),
            &[CONFIG, "Env", "NAME=value"],
        ),
        refused(
            "an environment that is a table",
            config!(|text| changed(text, |config| {
                config["config"]["Env"] = serde_json::json!({"A": "b"});
            })),
            &[CONFIG, "expected a sequence"],
        ),
        refused(
            "a variable that no kernel hands on",
            config!(|text| env(text, vec![format!("A={}", "x".repeat(200_000))])),
            &[CONFIG, "Env", "A=xxx", "131071 bytes"],
        ),
        refused(
            "a command that no kernel hands on",
            config!(|text| changed(text, |config| {
                config["config"]["Cmd"] = vec!["x".repeat(1000); 2000].into();
            })),
            &[CONFIG, "Entrypoint or Cmd", "1 MiB"],
        ),
        refused(
            "half a million variables",
            config!(|text| env(text, (0..300_000).map(|n| format!("{n}=")).collect())),
            &[CONFIG, "Env", "1 MiB"],
        ),
        inside(
            "a hundred thousand variables",
            config!(|text| env(text, (0..100_000).map(|n| format!("{n}=")).collect())),
            |tree| tree.assert_file("f", b"x"),
        ),
    ]
}
