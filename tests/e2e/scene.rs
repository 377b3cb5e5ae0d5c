//! What most tests begin with: a platform that has an image, and manifests for it.

use std::collections::{BTreeMap, BTreeSet};

use longshore_api::v1::InstanceView;
use longshore_e2e::image::{self, BUSYBOX_PORT, Layout};
use longshore_e2e::{Platform, Traffic, UpOptions};
use longshore_store::EtcdTlsFiles;
use longshore_store::conformance::{Certificates, EtcdServer};
use longshore_types::{InstanceId, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A platform whose registry has `default/web:1`, a busybox that serves the page `one`.
pub fn with_web() -> Platform {
    with_web_on(&UpOptions::default())
}

/// The same, started in a certain way.
pub fn with_web_on(options: &UpOptions) -> Platform {
    let platform = Platform::start_with(options).unwrap();
    let image = busybox(&platform, "one");
    platform.push(&image, "default/web:1").unwrap();
    platform
}

/// A platform with that image, and the etcd that its state is in.
pub struct OnEtcd {
    pub platform: Platform,
    pub etcd: Vec<EtcdServer>,
    /// Longer there than what is in it.
    pub dir: TempDir,
}

impl OnEtcd {
    /// With an etcd of so many members.
    pub fn start(n_members: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let etcd = EtcdServer::cluster(dir.path(), n_members).unwrap();
        Self::on(etcd, dir, "")
    }

    /// With an etcd that is spoken to by TLS, and asks for a certificate.
    pub fn start_secured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(&dir.path().join("certificates")).unwrap();
        let tls = certificates.of_server();
        let etcd = EtcdServer::cluster_with(dir.path(), 1, Some(&tls)).unwrap();
        let EtcdTlsFiles { ca, cert, key } = certificates.of_client();
        let config = [("ca", ca), ("cert", cert), ("key", key)]
            .map(|(name, path)| format!("store_{name} = {:?}\n", path.unwrap()));
        Self::on(etcd, dir, &config.concat())
    }

    fn on(etcd: Vec<EtcdServer>, dir: TempDir, more: &str) -> Self {
        let config = format!("store = \"{}/longshore\"\n{more}", EtcdServer::address(&etcd));
        let platform = with_web_on(&UpOptions { config, ..UpOptions::default() });
        Self { platform, etcd, dir }
    }
}

/// A busybox image that serves `page`, made in the platform's directory.
pub fn busybox(platform: &Platform, page: &str) -> Layout {
    image::busybox(platform.dir(), &format!("image-{page}"), page).unwrap()
}

/// An app of that image that serves it.
pub fn web(app: &str, count: u32) -> Value {
    json!({
        "app": app,
        "image": "default/web:1",
        "count": count,
        "port": BUSYBOX_PORT,
        "resources": {"memory": "32MiB", "cpu": "0.25", "disk": "64MiB"},
        "health": {"kind": "http", "path": "/", "interval": "1s"},
        "process": {"stop_grace": "1s"},
    })
}

/// The file `web.toml` with a manifest for one of the images `default/web`, and more of it in TOML.
pub fn web_file(platform: &Platform, tag: &str, count: u32, more: &str) -> String {
    let text = format!(
        "app = \"web\"\nimage = \"default/web:{tag}\"\nport = {BUSYBOX_PORT}\ncount = {count}\n\
         resources = {{ memory = \"32MiB\", cpu = 0.25, disk = \"64MiB\" }}\n\
         process = {{ stop_grace = \"1s\" }}\n{more}\n"
    );
    let path = platform.dir().join("web.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// An app of that image without a port, which runs a shell script.
pub fn script(app: &str, text: &str) -> Value {
    json!({
        "app": app,
        "image": "default/web:1",
        "resources": {"memory": "32MiB", "cpu": "0.25", "disk": "64MiB"},
        "process": {"command": ["/bin/sh", "-c", text], "stop_grace": "1s"},
    })
}

/// The manifest with keys set to other values.
pub fn but(mut manifest: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    manifest
}

/// The host name that an app has without asking for one.
pub fn host(app: &str) -> String {
    format!("{app}.localhost")
}

/// What the ingress answers for an app.
#[track_caller]
pub fn page(platform: &Platform, app: &str) -> String {
    let response = platform.get(&host(app), "/").unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    response.text()
}

/// Requests to an app through the ingress that go on.
pub fn traffic(platform: &Platform, app: &str) -> Traffic {
    Traffic::start(platform.ingress_address(), &host(app))
}

/// Which instances there are.
pub fn ids(instances: &[InstanceView]) -> BTreeSet<InstanceId> {
    instances.iter().map(|instance| instance.id().clone()).collect()
}

/// What must not change by a kill: which instances there are, since when, how often restarted.
pub type Lives = BTreeMap<InstanceId, (Option<Timestamp>, u32)>;

/// Reads it from a list of instances.
pub fn lives(instances: &[InstanceView]) -> Lives {
    let each = instances.iter();
    each.map(|one| (one.id().clone(), (one.observed.started_at, one.observed.restarts))).collect()
}
