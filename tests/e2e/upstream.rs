//! Images of another registry, which a platform gives as its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use longshore_e2e::debian::newer_program;
use longshore_e2e::image::{Layout, checked};
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::json;
use tempfile::TempDir;

use crate::scene::{busybox, but, page, web};

/// The registry that crane has in it.
struct Other {
    address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Other {
    fn start() -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(newer_program("crane").unwrap())
            .args(["registry", "serve", "--address", &address.to_string(), "--disk"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the other registry answers", || Ok(TcpStream::connect(address).ok())).unwrap();
        Self { address, child, _dir: dir }
    }

    fn push(&self, platform: &Platform, image: &Layout, name: &str) {
        let mut copy = platform.tool("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.args([image.source(), format!("docker://{}/{name}", self.address)]);
        checked(&mut copy).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_image_of_another_registry_runs_and_is_there_when_that_is_gone() {
    let other = Other::start();
    let config = format!("upstream = [\"images.test=http://{}\"]\n", other.address);
    let platform = Platform::start_with(&UpOptions { config, ..UpOptions::default() }).unwrap();
    let image = busybox(&platform, "one");
    other.push(&platform, &image, "library/web:1");
    let of = |app: &str, image: &str| but(web(app, 1), &json!({"image": image}));
    platform.deploy(&of("web", "images.test/library/web:1")).unwrap();
    assert_eq!(page(&platform, "web"), "one");
    let listed = platform.run(&["image", "ls"]).ok();
    assert!(listed.contains("images.test/library/web"), "{listed}");
    let unchanged = platform.deploy(&of("web", "images.test/library/web:1")).unwrap();
    assert!(!unchanged.changed);
    for (image, part) in [
        ("images.test/library/none:1", "images.test has none"),
        ("docker.io/nginx:1.27", "--upstream docker.io=https://registry-1.docker.io"),
    ] {
        let refused = format!("{:#}", platform.deploy_only(&of("none", image)).unwrap_err());
        assert!(refused.contains(part), "{refused}");
    }

    drop(other);
    platform.deploy(&of("again", "images.test/library/web:1")).unwrap();
    assert_eq!(page(&platform, "again"), "one");
    // Also for who has nothing of it.
    let registry = &platform.endpoints().registry;
    let mut back = platform.tool("skopeo");
    back.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
    back.args(["--src-creds", &format!("a:{}", platform.token())]);
    back.arg(format!("docker://{registry}/images.test/library/web:1"));
    checked(back.arg(format!("oci:{}", platform.dir().join("back").display()))).unwrap();
    platform.finish();
}
