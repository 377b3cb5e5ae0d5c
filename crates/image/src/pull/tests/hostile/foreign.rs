//! What other programs put beside a layer or into it to describe it once more, and file systems in place
//! of layers: the one is not believed, and the other not mounted.

use serde_json::json;

use crate::unpack::tests::gzip;

use super::documents::{changed, replaced};
use super::*;

/// A layer is named by it to be one.
const TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

fn archive() -> Archive {
    Archive::default().file("f", b"of the archive")
}

/// A table of contents that says something else than the archive does.
fn lie() -> Vec<u8> {
    let digest = digest_of(b"evil");
    let entries = json!([
        {"type": "reg", "name": "f", "size": 4, "mode": 0o104_755, "digest": digest, "offset": 0},
        {"type": "reg", "name": "../../planted", "size": 4, "digest": digest, "offset": 0},
        {"type": "symlink", "name": "etc", "linkName": "/etc"},
    ]);
    json!({ "version": 1, "entries": entries }).to_string().into_bytes()
}

/// A frame that every decoder of zstd skips.
fn skipped(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_le_bytes();
    [&[0x50, 0x2a, 0x4d, 0x18][..], &length, bytes].concat()
}

/// A manifest whose first layer has annotations.
fn annotated(text: &str, annotations: serde_json::Value) -> Vec<u8> {
    changed(text, |document| document["layers"][0]["annotations"] = annotations)
}

pub(super) fn cases() -> Vec<Case> {
    tables().into_iter().chain(file_systems()).collect()
}

fn tables() -> Vec<Case> {
    vec![
        inside(
            "a table of zstd:chunked that says something else",
            |_| {
                let plain = archive().finish();
                let table = zstd::encode_all(&lie()[..], 1).unwrap();
                let blob = [zstd::encode_all(&plain[..], 1).unwrap(), skipped(&table)].concat();
                let parts = ImageParts::default().layer("+zstd", blob, &plain);
                parts.edit_manifest(|text| {
                    let key = |name: &str| format!("io.github.containers.zstd-chunked.{name}");
                    annotated(
                        text,
                        json!({
                            key("manifest-checksum"): digest_of(&lie()),
                            key("manifest-position"): format!("0:{}:{}:1", 1_u64 << 40, lie().len()),
                        }),
                    )
                })
            },
            |tree| {
                tree.assert_file("f", b"of the archive");
                assert_eq!(tree.names(), ["f"]);
            },
        ),
        inside(
            "a table of eStargz that says something else",
            |_| {
                let table = archive().file("stargz.index.json", &lie());
                let plain = table.file(".no.prefetch.landmark", b"\x0f").finish();
                // A member for each entry, as it has them.
                let blob: Vec<u8> = plain.chunks(1024).flat_map(gzip).collect();
                let parts = ImageParts::default().layer("+gzip", blob, &plain);
                parts.edit_manifest(|text| {
                    let toc = "containerd.io/snapshot/stargz/toc.digest";
                    annotated(text, json!({ toc: digest_of(&lie()) }))
                })
            },
            |tree| {
                tree.assert_file("f", b"of the archive");
                tree.assert_file("stargz.index.json", &lie());
                assert_eq!(tree.names(), [".no.prefetch.landmark", "f", "stargz.index.json"]);
            },
        ),
        inside(
            "a layer that says which one our converter has for it",
            |_| {
                layer(archive()).edit_manifest(|text| {
                    annotated(text, json!({ longshore_types::DIFF_ID_ANNOTATION: digest_of(b"x") }))
                })
            },
            |tree| tree.assert_file("f", b"of the archive"),
        ),
        refused(
            "an index of our own converter as a layer",
            |_| {
                const OWN: &str = "application/vnd.longshore.image.layer.index.v1";
                layer(archive()).edit_manifest(|text| replaced(text, TYPE, OWN))
            },
            &["the manifest sha256:", "a layer has the media type", "layer.index.v1"],
        ),
    ]
}

/// The beginning of EROFS: its superblock lies behind two empty blocks of an archive.
fn erofs() -> Vec<u8> {
    let magic = 0xe0f5_e1e2_u32.to_le_bytes();
    [&[0; 1024][..], &magic, &[12; 3068]].concat()
}

fn file_systems() -> Vec<Case> {
    vec![
        refused(
            "a layer that is said to be a file system",
            |_| {
                const EROFS: &str = "application/vnd.erofs.layer.v1";
                layer(archive()).edit_manifest(|text| replaced(text, TYPE, EROFS))
            },
            &["the manifest sha256:", "a layer has the media type", "vnd.erofs"],
        ),
        inside(
            "EROFS in place of an archive",
            |_| ImageParts::default().layer("", erofs(), &erofs()),
            |tree| assert_eq!(tree.names(), [""; 0]),
        ),
        refused(
            "squashfs in place of an archive",
            |_| {
                let squashfs = [&b"hsqs"[..], &[1; 4092]].concat();
                ImageParts::default().layer("", squashfs.clone(), &squashfs)
            },
            &["unpacking the layer sha256:", "of entry 1"],
        ),
        inside(
            "files with the names of those that we mount",
            |_| {
                let names = ["data", "index", "report.json", "metadata", "fs/f", "upper", "work"];
                layer(names.iter().fold(Archive::default(), |made, name| made.file(name, &erofs())))
            },
            |tree| {
                tree.assert_file("metadata", &erofs());
                tree.assert_file("fs/f", &erofs());
                assert_eq!(tree.names().len(), 8);
            },
        ),
    ]
}
