use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::*;

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn days_ago(days: u64) -> Timestamp {
    Timestamp(now().0 - days * 86_400_000)
}

/// A directory with an authority in it.
struct Files {
    dir: tempfile::TempDir,
    authority: UserAuthority,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = UserAuthority::open(&dir.path().join("authority.json"), now()).unwrap();
        fs::write(dir.path().join("ca.crt"), authority.certificate()).unwrap();
        Self { dir, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_since(&self, stem: &str, names: &[&str], since: Timestamp) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let (chain, key) = self.authority.issue(&names, since).unwrap();
        fs::write(self.path(&format!("{stem}.pem")), chain).unwrap();
        let path = self.path(&format!("{stem}.key"));
        fs::write(&path, key).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn write(&self, stem: &str, names: &[&str]) {
        self.write_since(stem, names, now());
    }

    fn read(&self, stem: &str) -> Result<PublicCertificate, Vec<CertificateProblem>> {
        let path = |end| self.path(&format!("{stem}.{end}"));
        PublicCertificate::read(&path("pem"), &path("key"))
    }

    fn pair(&self, stem: &str) -> PublicFiles {
        let path = |end| self.path(&format!("{stem}.{end}"));
        PublicFiles::Pair { chain: path("pem"), key: path("key") }
    }
}

/// Shakes hands in memory with who is called `name`; the certificate that the client saw.
fn shake(
    certificates: &Arc<PublicCertificates>,
    ca: &Path,
    name: &str,
) -> Result<Fingerprint, rustls::Error> {
    let server = public_server_config(Arc::clone(certificates))?;
    let client = public_client_config(Some(ca)).unwrap();
    let mut server = ServerConnection::new(server)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
    Ok(Fingerprint::of(&client.peer_certificates().unwrap()[0]))
}

#[test]
fn a_certificate_says_what_it_is_for_and_until_when() {
    let files = Files::new();
    files.write("a", &["api.example.com", "*.apps.example.com", "192.0.2.1", "2001:db8::1"]);
    let read = files.read("a").unwrap();
    let covered = [
        "api.example.com",
        "API.example.com",
        "web.apps.example.com",
        "192.0.2.1",
        "[2001:db8::1]",
    ];
    for host in covered {
        assert!(read.covers(host), "{host}");
    }
    for host in ["example.com", "a.b.apps.example.com", "apps.example.com", "192.0.2.2", ""] {
        assert!(!read.covers(host), "{host}");
    }
    assert_eq!(read.complaint(now()), None);
    let later = |days: u64| Timestamp(now().0 + days * 86_400_000);
    assert!(read.complaint(later(390)).unwrap().ends_with("expires in 6 days"));
    assert!(read.complaint(later(400)).unwrap().ends_with("has expired"));
    assert!(read.complaint(days_ago(1)).unwrap().ends_with("is not good yet"));
}

#[test]
fn whatever_is_wrong_with_the_files_is_told_at_once() {
    let files = Files::new();
    files.write("a", &["a.example.com"]);
    files.write("b", &["b.example.com"]);
    let told = |chain: &str, key: &str| {
        let problems = PublicCertificate::read(&files.path(chain), &files.path(key)).unwrap_err();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let both = told("none.pem", "none.key");
    assert!(both.contains("none.pem is not a file that can be read"), "{both}");
    assert!(both.contains("none.key is not a file that can be read"), "{both}");
    assert!(told("a.pem", "b.key").contains("b.key is not the key of the first certificate in "));
    assert!(told("a.key", "a.key").contains("there is none in it"));
    assert!(told("a.pem", "a.pem").contains("a.pem is not a file that nobody but its owner"));
    fs::set_permissions(files.path("a.key"), Permissions::from_mode(0o640)).unwrap();
    assert!(told("a.pem", "a.key").contains("chmod 600"));
    fs::set_permissions(files.path("a.pem"), Permissions::from_mode(0o600)).unwrap();
    assert!(told("a.pem", "a.pem").contains("a key in PEM, without a passphrase"));
    // The authority names no host, and did not sign in this order.
    assert!(told("ca.crt", "b.key").contains("subject alternative names"));
    let text = |name: &str| fs::read_to_string(files.path(name)).unwrap();
    fs::write(files.path("turned.pem"), text("ca.crt") + &text("a.pem")).unwrap();
    assert!(told("turned.pem", "b.key").contains("has not signed"));
    fs::write(files.path("a.pem"), text("a.pem") + &text("ca.crt")).unwrap();
    fs::set_permissions(files.path("a.key"), Permissions::from_mode(0o600)).unwrap();
    files.read("a").unwrap();
}

#[test]
fn one_certificate_is_shown_to_everyone_and_follows_its_files() {
    let files = Files::new();
    files.write("a", &["a.example.com"]);
    let certificates = Arc::new(PublicCertificates::open(files.pair("a")).unwrap());
    let shake = |name: &str| shake(&certificates, &files.path("ca.crt"), name);
    let first = shake("a.example.com").unwrap();
    shake("b.example.com").unwrap_err();
    assert!(certificates.refresh().is_empty(), "nothing changed");

    files.write("a", &["a.example.com", "b.example.com"]);
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Shown(_)]));
    assert_ne!(shake("b.example.com").unwrap(), first);

    // Half of a renewal, and a broken one, change nothing and are told once.
    let second = shake("a.example.com").unwrap();
    fs::write(files.path("a.key"), "").unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Unusable(_)]));
    assert!(certificates.refresh().is_empty());
    fs::remove_file(files.path("a.key")).unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Unusable(_)]));
    assert_eq!(shake("a.example.com").unwrap(), second);
    files.write("a", &["a.example.com"]);
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Shown(_)]));
    assert_ne!(shake("a.example.com").unwrap(), second);
}

#[test]
fn of_a_directory_each_host_gets_its_own() {
    let files = Files::new();
    files.write("one", &["one.example.com"]);
    files.write("all", &["*.example.com"]);
    let certbot = files.path("deep.example.org");
    fs::create_dir(&certbot).unwrap();
    files.write("deep", &["deep.example.org"]);
    fs::rename(files.path("deep.pem"), certbot.join("fullchain.pem")).unwrap();
    fs::rename(files.path("deep.key"), certbot.join("privkey.pem")).unwrap();
    fs::write(files.path("half.pem"), "").unwrap();
    let directory = PublicFiles::Directory(files.dir.path().to_owned());
    let certificates = Arc::new(PublicCertificates::open(directory).unwrap());
    let news = certificates.refresh();
    let unusable = |one: &&CertificateNews| matches!(one, CertificateNews::Unusable(_));
    // Of half.pem both files.
    assert_eq!((news.len(), news.iter().filter(unusable).count()), (5, 2), "{news:?}");
    let shake = |name: &str| shake(&certificates, &files.path("ca.crt"), name);
    let (one, other) = (shake("one.example.com").unwrap(), shake("other.example.com").unwrap());
    assert_ne!(one, other);
    assert_eq!(shake("another.example.com").unwrap(), other);
    assert_ne!(shake("deep.example.org").unwrap(), other);
    for nobody in ["example.org", "a.b.example.com", "192.0.2.1"] {
        shake(nobody).unwrap_err();
    }
    fs::remove_file(files.path("one.pem")).unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Gone(_)]));
    assert_eq!(shake("one.example.com").unwrap(), other);
    fs::remove_dir_all(files.dir.path()).unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Unusable(_)]));
    assert!(certificates.refresh().is_empty());
    assert_eq!(certificates.all().len(), 2, "what was there is shown on");
}

#[test]
fn a_key_that_others_might_read_is_of_use_once_they_may_not() {
    let files = Files::new();
    files.write("one", &["one.example.com"]);
    fs::set_permissions(files.path("one.key"), Permissions::from_mode(0o640)).unwrap();
    let directory = PublicFiles::Directory(files.dir.path().to_owned());
    let certificates = PublicCertificates::open(directory).unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Unusable(_)]));
    assert!(certificates.refresh().is_empty());
    fs::set_permissions(files.path("one.key"), Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Shown(_)]));
}

#[test]
fn who_is_signed_by_others_or_has_expired_is_not_believed() {
    let (files, others) = (Files::new(), Files::new());
    files.write("a", &["a.example.com"]);
    let certificates = Arc::new(PublicCertificates::open(files.pair("a")).unwrap());
    shake(&certificates, &others.path("ca.crt"), "a.example.com").unwrap_err();
    files.write_since("a", &["a.example.com"], days_ago(400));
    // It is shown all the same: who may not look over it is told by his client.
    assert!(matches!(certificates.refresh()[..], [CertificateNews::Shown(_)]));
    shake(&certificates, &files.path("ca.crt"), "a.example.com").unwrap_err();
    for (text, shown) in [("", "nobody"), ("what", "none")] {
        fs::write(files.path("ca.crt"), text).unwrap();
        public_client_config(Some(&files.path("ca.crt"))).expect_err(shown);
    }
    public_client_config(Some(&files.path("absent"))).unwrap_err();
}
