//! Handshakes between roles, and those that must not come about.

use std::io;
use std::sync::Arc;

use longshore_types::{LocationName, Timestamp};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn ago(days: u64) -> Timestamp {
    Timestamp(now().0 - days * 86_400_000)
}

fn location(name: &str) -> LocationName {
    name.parse().unwrap()
}

fn node(location: &str, node: &str) -> Name {
    Name::Node(location.parse().unwrap(), node.parse().unwrap())
}

/// A root in a directory of its own.
struct World {
    _dir: tempfile::TempDir,
    root: RootAuthority,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RootAuthority::open(&dir.path().join("root.json"), ago(400)).unwrap();
        Self { _dir: dir, root }
    }

    fn authority_since(&self, name: &str, since: Timestamp) -> LocationAuthority {
        let key = NewKey::generate().unwrap();
        let signed = self.root.sign_location(&location(name), &key.public(), since).unwrap();
        LocationAuthority::new(location(name), &key.signed(&signed, since).unwrap()).unwrap()
    }

    fn authority(&self, name: &str) -> LocationAuthority {
        self.authority_since(name, now())
    }

    fn identity(&self, name: &Name) -> Identity {
        match name.location() {
            Some(location) => self.authority(location.as_str()).identify(name, now()).unwrap(),
            None => self.root.identify(name, now()).unwrap(),
        }
    }
}

/// Shakes hands in memory; whom the server sees.
fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    expected: &Name,
) -> Result<Peer, rustls::Error> {
    let mut server = ServerConnection::new(server)?;
    let mut client = ClientConnection::new(client, server_name(expected))?;
    let failed = |error: io::Error| rustls::Error::General(error.to_string());
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).map_err(failed)?;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).map_err(failed)?;
            server.process_new_packets()?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).map_err(failed)?;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).map_err(failed)?;
            client.process_new_packets()?;
        }
    }
    Ok(Peer::of(server.peer_certificates()))
}

fn between(server: &Identity, client: &Identity, expected: &Name) -> Result<Peer, rustls::Error> {
    let server = server_config(&Credentials::new(server)?)?;
    shake(server, client_config(&Credentials::new(client)?)?, expected)
}

#[test]
fn roles_know_each_other_by_name() {
    let world = World::new();
    let ams = Name::Location(location("ams"));
    for name in [Name::Global, ams.clone(), node("ams", "n1"), Name::Ingress(location("ams"))] {
        let peer = between(&world.identity(&ams), &world.identity(&name), &ams).unwrap();
        assert_eq!(peer.name(), Some(&name));
    }
    let server = world.identity(&Name::Global);
    let authority = world.authority("ams");
    let key = NewKey::generate().unwrap();
    world.root.identify(&ams, now()).unwrap_err();
    let signed = authority.sign(&node("ams", "n1"), &key.public(), now()).unwrap();
    let client = key.signed(&signed, now()).unwrap();
    let Peer::Known { key: seen, authority: Some(_), .. } =
        between(&server, &client, &Name::Global).unwrap()
    else {
        panic!("its location signed it");
    };
    assert_eq!(seen, key.public().fingerprint());
    assert_eq!(client.public_key().unwrap(), key.public());
}

#[test]
fn nobody_is_taken_for_another() {
    let world = World::new();
    let (ams, sin) = (Name::Location(location("ams")), Name::Location(location("sin")));
    let client = world.identity(&node("ams", "n1"));
    for (server, expected) in [(&sin, &ams), (&node("ams", "n1"), &ams), (&ams, &Name::Global)] {
        between(&world.identity(server), &client, expected).unwrap_err();
    }
    // Nor is who belongs to another world, on either side.
    let other = World::new();
    between(&other.identity(&ams), &client, &ams).unwrap_err();
    between(&world.identity(&ams), &other.identity(&node("ams", "n1")), &ams).unwrap_err();
}

#[test]
fn a_location_names_its_own_roles_and_no_others() {
    let world = World::new();
    let ams = world.authority("ams");
    for foreign in [Name::Global, Name::Location(location("sin")), node("sin", "n1")] {
        let error = ams.identify(&foreign, now()).unwrap_err();
        assert!(matches!(error, AuthorityError::NotOurs { .. }), "{error}");
        // One that was taken over signs all the same, and nobody believes it.
        let forged = ams.forge(&foreign, now());
        let server = world.identity(&Name::Global);
        between(&server, &forged, &Name::Global).unwrap_err();
        let client = world.identity(&node("ams", "n1"));
        between(&forged, &client, &foreign).unwrap_err();
    }
    // Its nodes sign for nobody.
    let leaf = world.identity(&node("ams", "n1"));
    let forged = LocationAuthority::new(location("ams"), &leaf).unwrap();
    let forged = forged.forge(&node("ams", "n2"), now());
    between(&world.identity(&Name::Global), &forged, &Name::Global).unwrap_err();
}

#[test]
fn what_has_expired_is_refused() {
    let world = World::new();
    let server = world.identity(&Name::Global);
    let name = node("ams", "n1");
    let fresh = world.authority("ams");
    let old = fresh.identify(&name, ago(2)).unwrap();
    between(&server, &old, &Name::Global).unwrap_err();
    // An authority outlives its global plane for 90 days, and what it signs does not outlive it.
    let at_its_end = world.authority_since("ams", ago(89));
    assert!(at_its_end.is_due(now()));
    between(&server, &at_its_end.identify(&name, now()).unwrap(), &Name::Global).unwrap();
    let past = world.authority_since("ams", ago(91));
    between(&server, &past.identify(&name, now()).unwrap(), &Name::Global).unwrap_err();
    let young = fresh.identify(&name, now()).unwrap();
    assert!(!young.is_due(now()) && !fresh.is_due(now()));
    assert!(young.is_due(Timestamp(now().0 + 17 * 3_600_000)));
}

#[test]
fn who_joins_speaks_to_the_right_world_alone() {
    let world = World::new();
    let ams = Name::Location(location("ams"));
    let identity = world.identity(&ams);
    let server = || server_config(&Credentials::new(&identity).unwrap()).unwrap();
    let root = Fingerprint::of(world.root.certificate());
    let joining = joining_config(root).unwrap();
    assert_eq!(shake(server(), joining.clone(), &ams).unwrap(), Peer::Stranger);
    shake(server(), joining, &Name::Location(location("sin"))).unwrap_err();
    let other = joining_config(Fingerprint::of(World::new().root.certificate())).unwrap();
    shake(server(), other, &ams).unwrap_err();
}

#[test]
fn an_identity_is_renewed_while_it_is_used() {
    let world = World::new();
    let authority = world.authority("ams");
    let (name, ams) = (node("ams", "n1"), Name::Location(location("ams")));
    let old = authority.identify(&name, ago(2)).unwrap();
    let credentials = Credentials::new(&old).unwrap();
    let client = client_config(&credentials).unwrap();
    let identity = world.identity(&ams);
    let server = server_config(&Credentials::new(&identity).unwrap()).unwrap();
    shake(Arc::clone(&server), Arc::clone(&client), &ams).unwrap_err();
    let signed = authority.sign(&name, &old.public_key().unwrap(), now()).unwrap();
    let renewed = old.renewed(&signed, now()).unwrap();
    credentials.replace(&renewed).unwrap();
    assert_eq!(shake(server, client, &ams).unwrap().name(), Some(&name));
}

#[test]
fn files_are_their_owners_alone_and_say_the_same_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    assert!(Identity::load(&path).unwrap().is_none());
    let world = World::new();
    let identity = world.identity(&Name::Global);
    identity.save(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let loaded = Identity::load(&path).unwrap().unwrap();
    assert_eq!(loaded.public_key().unwrap(), identity.public_key().unwrap());
    assert_eq!((loaded.issued_at(), loaded.root()), (identity.issued_at(), identity.root()));
    let root = dir.path().join("root.json");
    let made = RootAuthority::open(&root, now()).unwrap();
    let again = RootAuthority::open(&root, now()).unwrap();
    assert_eq!(made.certificate(), again.certificate());
    assert_eq!(made.secret_for("a"), again.secret_for("a"));
    assert_ne!(made.secret_for("a"), made.secret_for("b"));
    let whole = std::fs::read(&root).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"{}"] {
        std::fs::write(&root, damaged).unwrap();
        RootAuthority::open(&root, now()).map(drop).unwrap_err();
    }
}

#[test]
fn a_token_survives_being_copied_and_shows_itself_to_nobody() {
    let token = JoinToken {
        joins: JoinAs::Node(location("ams")),
        address: "203.0.113.1:4602".to_owned(),
        root: Fingerprint::of(b"root"),
        secret: "5ec2e7".to_owned().into(),
        recovers: true,
    };
    let text = token.text();
    assert_eq!(format!(" {}\n", *text).parse::<JoinToken>().unwrap(), token);
    assert!(!format!("{token:?}").contains("5ec2e7"));
    for bad in ["", "lsh_00", "lsj_", "lsj_%", &text[..text.len() - 3]] {
        let why = bad.parse::<JoinToken>().unwrap_err();
        assert!(bad.len() < 8 || !why.contains(bad), "{why}");
    }
    for bad in ["", "00", "AA", "4"] {
        serde_json::from_value::<PublicKey>(bad.into()).unwrap_err();
    }
}

#[test]
fn what_a_token_is_for_is_written_as_before_and_makes_sense() {
    let token = |fields: serde_json::Value| {
        let mut all = serde_json::json!({
            "address": "203.0.113.1:4602", "root": "0".repeat(64), "secret": "5ec2e7",
        });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        (all.clone(), serde_json::from_value::<JoinToken>(all))
    };
    let ams = || location("ams");
    for (fields, joins) in [
        (serde_json::json!({"role": "node", "location": "ams"}), JoinAs::Node(ams())),
        (serde_json::json!({"role": "location", "location": "ams"}), JoinAs::Location(ams())),
        (serde_json::json!({"role": "registry"}), JoinAs::Registry),
    ] {
        let (written, read) = token(fields);
        let read = read.unwrap();
        assert_eq!(read.joins, joins);
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
    }
    for bad in [
        serde_json::json!({"role": "node"}),
        serde_json::json!({"role": "location"}),
        serde_json::json!({"role": "registry", "location": "ams"}),
        serde_json::json!({"role": "global"}),
        serde_json::json!({"location": "ams"}),
    ] {
        token(bad).1.unwrap_err();
    }
}
