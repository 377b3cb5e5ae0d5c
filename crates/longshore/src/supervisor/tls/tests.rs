use std::fs::Permissions;

use super::*;
use crate::supervisor::home::Contents;
use crate::supervisor::settings::Settings;

/// A certificate of an operator for these names.
fn write(dir: &std::path::Path, names: &[&str]) -> TlsSettings {
    let authority = UserAuthority::open(&dir.join("authority.json"), now()).unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let (chain, key) = authority.issue(&names, now()).unwrap();
    let (cert_file, key_file) = (dir.join("a.pem"), dir.join("a.key"));
    fs::write(&cert_file, chain).unwrap();
    fs::write(&key_file, key).unwrap();
    fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    TlsSettings { cert: Some(cert_file), key: Some(key_file), ..TlsSettings::default() }
}

fn problems(tls: &TlsSettings, api: &str) -> String {
    let listen =
        [("api_listen", api.parse().unwrap()), ("registry_listen", "[::1]:1".parse().unwrap())];
    tls.problems(&listen).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn without_a_certificate_nothing_but_loopback_is_listened_on() {
    let none = TlsSettings::default();
    assert_eq!(problems(&none, "127.0.0.1:1"), "");
    let told = problems(&none, "192.0.2.1:1");
    for part in ["api_listen = \"192.0.2.1:1\": a loopback address", "tls_self_signed = true"] {
        assert!(told.contains(part), "{told}");
    }
    let made = TlsSettings { self_signed: true, ..TlsSettings::default() };
    assert_eq!(problems(&made, "192.0.2.1:1"), "");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(problems(&write(dir.path(), &["a.example.com"]), "192.0.2.1:1"), "");
}

#[test]
fn what_does_not_fit_together_is_told_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let good = write(dir.path(), &["*.example.com", "a.example.com"]);
    let with = |change: fn(&mut TlsSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        problems(&settings, "192.0.2.1:1")
    };
    for (told, part) in [
        (with(|tls| tls.key = None), "tls_key = (none): the file with the key of tls_cert"),
        (with(|tls| tls.cert = None), "tls_key = "),
        (with(|tls| tls.self_signed = true), "beside tls_self_signed = true"),
        (with(|tls| tls.cert = Some("/none".into())), "tls_cert = /none: a file that can be read"),
        (with(|tls| tls.ca = Some("/none".into())), "tls_ca = /none: a file of certificates"),
        (
            with(|tls| tls.host = Some("b.example.org".to_owned())),
            "public_host = \"b.example.org\": one that the certificate in tls_cert is for: *.example.com, \
             a.example.com",
        ),
    ] {
        assert!(told.contains(part), "{part:?} in {told:?}");
    }
    let wild = write(dir.path(), &["*.example.com"]);
    assert!(problems(&wild, "192.0.2.1:1").contains("public_host = \"\": one that"));
    let nowhere = TlsSettings { self_signed: true, ..TlsSettings::default() };
    assert!(problems(&nowhere, "0.0.0.0:1").contains("public_host = \"\": the name or address"));
}

#[test]
fn users_reach_the_platform_by_what_the_certificate_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let tls = write(dir.path(), &["a.example.com", "192.0.2.1"]);
    let certificate = tls.read().unwrap();
    let host = |api: &str| tls.host(api.parse().unwrap(), certificate.as_ref()).unwrap();
    assert_eq!(host("192.0.2.1:4600"), "192.0.2.1");
    assert_eq!(host("192.0.2.2:4600"), "a.example.com");
    assert_eq!(host("0.0.0.0:4600"), "a.example.com");
}

#[test]
fn a_certificate_is_made_once_and_anew_for_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let home = Home::take(&path("data"), &path("run"), Contents::Platform).unwrap();
    let mut settings = Settings::defaults("n1".parse().unwrap());
    settings.tls.self_signed = true;
    settings.api_listen = "192.0.2.1:4600".parse().unwrap();
    let made = |settings: &Settings| {
        let tls = UsersTls::prepare(&settings.tls, &settings.to_users(), &home).unwrap().unwrap();
        let certificate = PublicCertificate::read(&tls.cert, &tls.key).unwrap();
        (tls, certificate)
    };
    let (tls, first) = made(&settings);
    assert_eq!(tls.authority("4600"), "192.0.2.1:4600");
    for host in ["192.0.2.1", "127.0.0.1", "::1", "localhost"] {
        assert!(first.covers(host), "{host}");
    }
    let ca = || fs::read_to_string(home.tls_ca_file()).unwrap();
    let trusted = ca();
    assert_eq!(made(&settings).1.fingerprint(), first.fingerprint());
    settings.tls.host = Some("ams.example.com".to_owned());
    let (tls, second) = made(&settings);
    assert!(second.covers("ams.example.com") && second.fingerprint() != first.fingerprint());
    assert_eq!(tls.authority("1"), "ams.example.com:1");
    assert_eq!(ca(), trusted, "users trust it as before");
}
