use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use longshore_trust::{UserAuthority, public_client_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{CallError, Client, Endpoint, Listener, Service, Upgrade};

fn write(dir: &Path, names: &[&str]) {
    let authority = UserAuthority::open(&dir.join("authority.json"), now()).unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let (chain, key) = authority.issue(&names, now()).unwrap();
    fs::write(dir.join("ca.crt"), authority.certificate()).unwrap();
    fs::write(dir.join("a.pem"), chain).unwrap();
    fs::write(dir.join("a.key"), key).unwrap();
    fs::set_permissions(dir.join("a.key"), Permissions::from_mode(0o600)).unwrap();
}

/// Serves by TLS; where, and a client that trusts it.
fn serve(dir: &Path, shutdown: &CancellationToken) -> (Endpoint, Client) {
    let files = PublicFiles::Pair { chain: dir.join("a.pem"), key: dir.join("a.key") };
    let tls = PublicTls::open(files).unwrap();
    let listener = Listener::bind("test", &Endpoint::Tls("127.0.0.1:0".to_owned())).unwrap();
    let endpoint = listener.endpoint().unwrap();
    let from = |ConnectInfo(from): ConnectInfo<std::net::SocketAddr>| async move {
        axum::Json(from.port())
    };
    let service = Service::new(shutdown.clone());
    let echo = move |upgrade: Upgrade| async move {
        upgrade.tunnel(&service, "echo", |tunnel| async move {
            let (mut reader, mut writer) = tokio::io::split(tunnel);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
    };
    let router = Router::new().route("/from", get(from)).route("/echo", get(echo));
    tokio::spawn(tls.clone().keep_fresh());
    tokio::spawn(listener.serve_users(Some(tls), router, shutdown.clone()));
    let config = public_client_config(Some(&dir.join("ca.crt"))).unwrap();
    (endpoint.clone(), Client::public(endpoint, config))
}

#[tokio::test]
async fn users_are_spoken_to_by_tls_and_who_is_not_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    write(dir.path(), &["127.0.0.1"]);
    let (endpoint, client) = serve(dir.path(), &shutdown);
    assert_ne!(client.get::<u16>("/from").await.unwrap(), 0);
    // Who trusts others believes nothing, and who speaks in the clear is told what is spoken.
    let others = tempfile::tempdir().unwrap();
    write(others.path(), &["127.0.0.1"]);
    let config = public_client_config(Some(&others.path().join("ca.crt"))).unwrap();
    let error = Client::public(endpoint.clone(), config).get::<u16>("/from").await.unwrap_err();
    assert!(crate::chain(&error).contains("invalid peer certificate"), "{}", crate::chain(&error));
    let mut plain = tokio::net::TcpStream::connect(endpoint.authority()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("ask with https://\n"), "{answer}");
    shutdown.cancel();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_breaks_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    write(dir.path(), &["127.0.0.1"]);
    let (endpoint, client) = serve(dir.path(), &shutdown);
    let mut open = client.tunnel("/echo").await.unwrap();
    // One that is for nobody here, so that it is seen from when on it is shown.
    write(dir.path(), &["elsewhere.example.com"]);
    let refused = async {
        loop {
            let config = public_client_config(Some(&dir.path().join("ca.crt"))).unwrap();
            let another = Client::public(endpoint.clone(), config);
            match another.get::<u16>("/from").await {
                Err(CallError::Unreachable { .. }) => return,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused).await.unwrap();
    open.write_all(b"still").await.unwrap();
    let mut echoed = [0; 5];
    open.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"still");
    shutdown.cancel();
}
