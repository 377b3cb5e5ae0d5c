//! Users who come by TLS.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use longshore_api::links::{AppRef, Elsewhere, Endpoint, Places, Route};
use longshore_link::{Listener, PublicTls, now};
use longshore_trust::{PublicFiles, UserAuthority, public_client_config, public_name};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::played::*;
use crate::SecureOptions;
use crate::gate::DirectGate;

/// A host that a certificate is for, and no app until a test has one.
const OTHER_HOST: &str = "other-app.test";

/// An ingress with certificates, between a played location and an instance that tells what it sees.
struct Secure {
    location: Location,
    ingress: Ingress,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

fn certify(dir: &Path, stem: &str, names: &[&str]) {
    let authority = UserAuthority::open(&dir.join("authority.json"), now()).unwrap();
    fs::write(dir.join("ca.crt"), authority.certificate()).unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let (chain, key) = authority.issue(&names, now()).unwrap();
    let key_file = dir.join("tls").join(format!("{stem}.key"));
    fs::write(&key_file, key).unwrap();
    fs::set_permissions(key_file, Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("tls").join(format!("{stem}.pem")), chain).unwrap();
}

impl Secure {
    async fn start(instance: &Endpoint, redirects: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tls")).unwrap();
        certify(dir.path(), "web", &[HOST, OTHER_HOST]);
        let location = Location::start(dir.path());
        let any = longshore_link::Endpoint::Tls("127.0.0.1:0".to_owned());
        let listener = Listener::bind("ingress-tls", &any).unwrap();
        let address: SocketAddr = listener.endpoint().unwrap().authority().parse().unwrap();
        let tls = PublicTls::open(PublicFiles::Directory(dir.path().join("tls"))).unwrap();
        let redirect = redirects.then(|| address.port());
        let secure = SecureOptions { listener, tls, redirect };
        let all = (None, None, Some(secure));
        let ingress = Ingress::start_secure(dir.path(), limits(), Arc::new(DirectGate), all);
        location.give_and_wait(1, &[instance]).await;
        Self { location, ingress, address, dir }
    }

    /// Connects as who wants to speak to `name`, by one of these protocols.
    async fn connect(&self, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let config = public_client_config(Some(&self.dir.path().join("ca.crt"))).unwrap();
        let mut config = (*config).clone();
        config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(public_name(name).unwrap(), stream).await
    }

    /// Tells the ingress of another app, of this host.
    async fn give_app(&self, revision: u64, instance: &Endpoint, host: &str) {
        let mut table = table(revision, &[instance]);
        let (app, hosts) = ("other".parse().unwrap(), vec![host.parse().unwrap()]);
        let route = Route { app, hosts, ..Route::clone(&table.routes[0]) };
        table.routes.push(Arc::new(route));
        self.location.give_table_and_wait(table).await;
    }

    async fn get(&self, alpn: &[&str]) -> Response<Incoming> {
        let stream = self.connect(HOST, alpn).await.unwrap();
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            let request = Request::get(format!("https://{HOST}/")).body(Full::<Bytes>::default());
            return in_time("an answer", sender.send_request(request.unwrap())).await.unwrap();
        }
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        in_time("an answer", sender.send_request(request(HOST, "/"))).await.unwrap()
    }
}

async fn telling() -> Instance {
    Instance::start(Router::new().fallback(async |request: axum::extract::Request| {
        let told = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        format!("{} {}", told("x-forwarded-proto"), told("x-forwarded-for"))
    }))
    .await
}

#[tokio::test]
async fn users_of_tls_are_served_and_their_instance_is_told() {
    let instance = telling().await;
    let secure = Secure::start(&instance.endpoint, false).await;
    for (alpn, version) in [
        (&["h2", "http/1.1"][..], http::Version::HTTP_2),
        (&["http/1.1"][..], http::Version::HTTP_11),
        (&[][..], http::Version::HTTP_11),
    ] {
        let answer = secure.get(alpn).await;
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, version), "{alpn:?}");
        assert_eq!(text(answer).await, "https 127.0.0.1");
    }
    // Beside them those in the clear, who are told of as that whatever they say.
    let mut lie = request(HOST, "/");
    lie.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
    assert_eq!(text(secure.ingress.send(lie).await).await, "http 127.0.0.1");
}

#[tokio::test]
async fn the_name_chooses_the_certificate_and_new_ones_are_found() {
    let instance = telling().await;
    let secure = Secure::start(&instance.endpoint, false).await;
    secure.give_app(2, &instance.endpoint, "web.apps.test").await;
    for nobody in ["web.apps.test", "127.0.0.1"] {
        secure.connect(nobody, &[]).await.unwrap_err();
    }
    let kept = secure.connect(HOST, &[]).await.unwrap();
    certify(secure.dir.path(), "other", &["*.apps.test"]);
    let found = async {
        while secure.connect("web.apps.test", &[]).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    in_time("the new certificate", found).await;
    // A connection from before goes on.
    let (mut sender, connection) = http1::handshake(TokioIo::new(kept)).await.unwrap();
    tokio::spawn(connection);
    let answer = in_time("an answer", sender.send_request(request(HOST, "/"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_host_of_no_app_is_refused_in_the_handshake_whatever_certificate_there_is() {
    let instance = telling().await;
    let secure = Secure::start(&instance.endpoint, true).await;
    let in_the_clear = async || secure.ingress.send(request(OTHER_HOST, "/")).await.status();
    let refused = secure.connect(OTHER_HOST, &[]).await.unwrap_err();
    assert!(refused.to_string().contains("alert"), "{refused}");
    assert_eq!(in_the_clear().await, StatusCode::NOT_FOUND, "and nobody is sent there");
    // The certificate was there all along: it is shown once an app has the host, here,
    secure.give_app(2, &instance.endpoint, OTHER_HOST).await;
    secure.connect(OTHER_HOST, &[]).await.unwrap();
    assert_eq!(in_the_clear().await, StatusCode::PERMANENT_REDIRECT);
    secure.location.give_and_wait(3, &[&instance.endpoint]).await;
    secure.connect(OTHER_HOST, &[]).await.unwrap_err();
    // or elsewhere, for as long as it has.
    let app = AppRef { project: Default::default(), app: "other".parse().unwrap() };
    let at = vec!["ams".parse().unwrap()];
    let places = Places { hosts: vec![OTHER_HOST.parse().unwrap()], at };
    let apps = [(app, places)].into_iter().collect();
    secure.location.tell(Elsewhere { apps, ..Elsewhere::default() });
    let shown = async {
        while secure.connect(OTHER_HOST, &[]).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    in_time("its certificate", shown).await;
    secure.location.tell(Elsewhere::default());
    let refused = async {
        while secure.connect(OTHER_HOST, &[]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    in_time("that it is gone", refused).await;
    secure.connect(HOST, &[]).await.unwrap();
}

#[tokio::test]
async fn a_websocket_by_tls_is_passed_through() {
    let raw = RawInstance::start().await;
    let secure = Secure::start(&raw.endpoint, false).await;
    let mut user = secure.connect(HOST, &["h2", "http/1.1"]).await.unwrap();
    drop(user);
    user = secure.connect(HOST, &["http/1.1"]).await.unwrap();
    let asked = format!(
        "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    user.write_all(asked.as_bytes()).await.unwrap();
    let mut instance = raw.accept().await;
    assert!(read_head(&mut instance).await.contains("x-forwarded-proto: https\r\n"));
    instance
        .write_all(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        answer.push(in_time("the answer", user.read_u8()).await.unwrap());
    }
    user.write_all(b"and back").await.unwrap();
    let mut back = [0; 8];
    in_time("what was sent", instance.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"and back");
}

#[tokio::test]
async fn who_comes_in_the_clear_is_sent_where_there_is_a_certificate() {
    let instance = telling().await;
    let secure = Secure::start(&instance.endpoint, true).await;
    let answer = secure.ingress.send(request(&format!("{HOST}:80"), "/a?b=c")).await;
    assert_eq!(answer.status(), StatusCode::PERMANENT_REDIRECT);
    let expected = format!("https://{HOST}:{}/a?b=c", secure.address.port());
    assert_eq!(answer.headers()[header::LOCATION], expected);
    assert_eq!(secure.get(&[]).await.status(), StatusCode::OK, "and served there");
    let other = secure.ingress.send(request("other.test", "/")).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    let mut plain = TcpStream::connect(secure.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let mut told = String::new();
    in_time("an answer", plain.read_to_string(&mut told)).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
}
