//! An etcd that is spoken to by TLS, with certificates on both sides. Needs the apt package etcd-server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use longshore_store::conformance::{self, Certificates, EtcdServer, Subject};
use longshore_store::{
    EtcdAddress, EtcdStore, EtcdTlsFile, EtcdTlsFiles, EtcdTlsProblem, Store, StoreError,
};

/// Those that use each kind of call.
const CASES: [&str; 4] = [
    "keys::a_put_is_read_back",
    "transactions::concurrent_swaps_lose_no_update",
    "watches::replay_goes_live_without_gap_or_duplicate",
    "leases::a_lease_that_runs_out_takes_its_keys",
];

struct Secured {
    members: Vec<EtcdServer>,
    certificates: Certificates,
    dir: tempfile::TempDir,
}

impl Secured {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(&dir.path().join("certificates")).unwrap();
        let tls = certificates.of_server();
        let members = EtcdServer::cluster_with(dir.path(), 1, Some(&tls)).unwrap();
        Self { members, certificates, dir }
    }

    fn address(&self) -> EtcdAddress {
        EtcdServer::address(&self.members)
    }

    async fn connect(&self, files: &EtcdTlsFiles) -> Result<EtcdStore, StoreError> {
        let address = self.address();
        let tls = files.load(Some(&address)).unwrap();
        let connected = EtcdStore::connect(&address, tls.as_ref());
        // What is wrong for good is said at once.
        tokio::time::timeout(Duration::from_secs(20), connected).await.expect("in time")
    }
}

impl Subject for Secured {
    fn open(&mut self) -> BoxFuture<'_, Arc<dyn Store>> {
        let files = self.certificates.of_client();
        async move { Arc::new(self.connect(&files).await.unwrap()) as Arc<dyn Store> }.boxed()
    }
}

async fn secured() -> Secured {
    tokio::task::spawn_blocking(Secured::new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms_over_tls() {
    for name in CASES {
        let case = conformance::CASES.iter().find(|case| case.name == name).unwrap();
        case.run(&mut secured().await).await;
    }
}

fn why(refused: Result<EtcdStore, StoreError>) -> String {
    let StoreError::Storage { doing, source } = refused.unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(doing, "connecting to etcd");
    source.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_trusted_is_told_so() {
    let etcd = secured().await;
    let strangers = Certificates::make(&etcd.dir.path().join("strangers")).unwrap();
    let (ours, theirs) = (etcd.certificates.of_client(), strangers.of_client());
    etcd.connect(&ours).await.unwrap();

    let wrong_ca = EtcdTlsFiles { ca: theirs.ca.clone(), ..ours.clone() };
    let said = why(etcd.connect(&wrong_ca).await);
    assert!(said.contains("not one that --store-ca vouches for"), "{said}");

    let without = EtcdTlsFiles { cert: None, key: None, ..ours.clone() };
    let said = why(etcd.connect(&without).await);
    assert!(said.contains("does not take our certificate: --store-cert"), "{said}");

    let stranger = EtcdTlsFiles { ca: ours.ca.clone(), ..theirs };
    let said = why(etcd.connect(&stranger).await);
    assert!(said.contains("does not take our certificate: --store-cert"), "{said}");
}

fn problems(files: &EtcdTlsFiles, address: &str) -> Vec<(EtcdTlsFile, Option<PathBuf>, String)> {
    let address = address.parse().unwrap();
    let problems = files.load(Some(&address)).unwrap_err();
    let each = |EtcdTlsProblem { file, path, allowed }| (file, path, allowed);
    problems.into_iter().map(each).collect()
}

#[test]
fn everything_that_is_wrong_with_the_files_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path()).unwrap();
    let good = certificates.of_client();
    let address = "https://a:1".parse().unwrap();
    let loaded = good.load(Some(&address)).unwrap().unwrap();
    assert_eq!(format!("{loaded:?}"), "EtcdTls { own: true, .. }");
    assert_eq!(EtcdTlsFiles::default().load(None), Ok(None));

    std::fs::write(dir.path().join("text"), "no certificate").unwrap();
    let path = |name: &str| Some(dir.path().join(name));
    let open = path("client-key.pem").unwrap();
    let restrict = |mode| {
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    restrict(0o640);
    let bad = EtcdTlsFiles { ca: path("none"), cert: path("text"), key: Some(open.clone()) };
    let told = problems(&bad, "https://a:1");
    let told: Vec<_> = told.iter().map(|(file, _, allowed)| (*file, allowed.as_str())).collect();
    let [(EtcdTlsFile::Ca, ca), (EtcdTlsFile::Cert, cert), (EtcdTlsFile::Key, key)] = told[..]
    else {
        panic!("{told:?}")
    };
    assert!(ca.starts_with("a file that can be read: No such file"), "{ca}");
    assert_eq!(cert, "a file with certificates in PEM");
    assert_eq!(key, "a file for its owner alone, of mode 600; this one has 640");

    restrict(0o600);
    let key = Some(certificates.of_server().key);
    let other = problems(&EtcdTlsFiles { key, ..good.clone() }, "https://a:1");
    assert!(other[0].2.starts_with("the key of the certificate in --store-cert: "), "{other:?}");

    let half = EtcdTlsFiles { cert: good.cert.clone(), ..EtcdTlsFiles::default() };
    let missing: Vec<_> = problems(&half, "https://a:1").into_iter().map(|it| it.0).collect();
    assert_eq!(missing, [EtcdTlsFile::Ca, EtcdTlsFile::Key]);
    let needless = problems(&EtcdTlsFiles { ca: good.ca, ..EtcdTlsFiles::default() }, "http://a:1");
    assert!(needless[0].2.contains("nothing where the store is no etcd at https://"));
    assert_eq!(needless[0].1.as_deref(), Some(Path::new(&dir.path().join("ca.pem"))));
}
