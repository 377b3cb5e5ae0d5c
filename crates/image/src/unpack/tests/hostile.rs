//! Layers made to get out. `Place::unpack` asserts after each that nothing outside has changed.

use proptest::prelude::*;

use super::{Place, digest_of, identity};
use crate::limits::Limits;
use crate::tar::tests::{Archive, RawHeader};
use crate::unpack::{UnpackError, unpack};

#[test]
fn symbolic_links_do_not_lead_out() {
    let place = Place::new();
    let outside = place.outside();
    let outside = outside.to_str().unwrap();
    let relative = format!("../{}", "../".repeat(30)) + outside;
    for target in [outside, &relative, "../outside", "/proc/self/root", "/proc/1/root", "."] {
        let attempts = [
            Archive::default().symlink("l", target).file("l/secret", b"overwritten"),
            Archive::default().symlink("l", target).file("l/new/file", b"planted"),
            Archive::default().symlink("l", format!("{target}/secret")).file("l", b"overwritten"),
            Archive::default().symlink("l", target).hard_link("h", "l/secret"),
            Archive::default()
                .symlink("l", format!("{target}/secret"))
                .hard_link("h", "l")
                .file("h", b"through a hard link to a symbolic one"),
            Archive::default().symlink("l", target).file("l/.wh.secret", b""),
            Archive::default().symlink("l", target).file("l/.wh..wh..opq", b""),
            Archive::default()
                .symlink("l", target)
                .raw(RawHeader::new(b'5', b"l").mode(0o7777).owner(7, 7), b""),
            Archive::default()
                .symlink("a", target)
                .symlink("b", "a")
                .symlink("c", "/b/../b")
                .file("c/secret", b""),
            Archive::default()
                .directory("d")
                .file("d/f", b"")
                .symlink("d", target)
                .file("d/secret", b"the directory was there a moment ago"),
        ];
        for archive in attempts {
            // Refused or made inside: either is right.
            let _ = Place::unpack(&place, &archive.finish(), &Limits::default());
            std::fs::remove_dir_all(place.layer()).unwrap();
            std::fs::create_dir(place.layer()).unwrap();
        }
    }
}

#[test]
fn names_that_climb_are_refused() {
    let place = Place::new();
    for name in ["../outside/secret", "a/../../outside/secret", "..", "/..", "./../x", "a/.."] {
        for archive in [
            Archive::default().file(name, b"x"),
            Archive::default().directory(name),
            Archive::default().symlink(name, "x"),
            Archive::default().file("a", b"").hard_link(name, "a"),
            Archive::default().hard_link("a", name),
            Archive::default().pax(&[("path", name.as_bytes())]).file("f", b""),
            Archive::default().extension(b'L', name.as_bytes()).file("f", b""),
        ] {
            let result = place.unpack(&archive.finish(), &Limits::default());
            assert!(matches!(result, Err(UnpackError::Archive(_))), "{name}: {result:?}");
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", "."]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", "outside", "secret"]);
    (any::<bool>(), prop::collection::vec(part, 1..6))
        .prop_map(|(absolute, parts)| "/".repeat(absolute.into()) + &parts.join("/"))
}

fn archive() -> impl Strategy<Value = Archive> {
    let entry = (0_u8..6, name(), name(), target());
    prop::collection::vec(entry, 1..25).prop_map(|entries| {
        entries.into_iter().fold(Archive::default(), |archive, (kind, name, other, target)| {
            match kind {
                0 | 1 => archive.file(name, b"contents"),
                2 => archive.directory(name),
                3 | 4 => archive.symlink(name, target),
                _ => archive.hard_link(name, other),
            }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_layers_stay_inside(archive in archive()) {
        let place = Place::new();
        match place.unpack(&archive.finish(), &Limits::default()) {
            Ok(_) | Err(UnpackError::Entry { .. } | UnpackError::Archive(_)) => {}
            Err(error) => prop_assert!(false, "{error:?}"),
        }
    }

    #[test]
    fn damaged_layers_are_refused(
        archive in archive(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let plain = archive.finish();
        let mut damaged = plain.clone();
        for (at, value) in damage {
            *at.get_mut(&mut damaged) = value;
        }
        if cuts {
            damaged.truncate(cut.index(plain.len()));
        }
        let place = Place::new();
        // As a layer of its own it must do no harm; as the layer that was asked for it is refused.
        let _ = place.unpack(&damaged, &Limits::default());
        if digest_of(&damaged) != digest_of(&plain) {
            let other = Place::new();
            let root = std::fs::File::open(other.layer()).unwrap().into();
            let result = unpack(&damaged[..], &identity(&plain, &plain), root, &Limits::default());
            prop_assert!(
                matches!(
                    result,
                    Err(UnpackError::BlobDigest { .. } | UnpackError::BlobSize { .. })
                ),
                "{result:?}"
            );
        }
    }
}
