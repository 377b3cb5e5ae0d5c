//! buildah, with its own storage.

use super::engines::unmount_below;
use super::*;

struct Buildah<'a>(&'a Harness);

impl Buildah<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        for (option, name) in [("--root", "root"), ("--runroot", "run")] {
            command.arg(option).arg(self.0.path("buildah").join(name));
        }
        command
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("REGISTRY_AUTH_FILE", self.0.path("buildah/auth.json"))
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null");
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        succeeds("buildah", &mut self.command(args))
    }
}

impl Drop for Buildah<'_> {
    fn drop(&mut self) {
        unmount_below(&self.0.path("buildah"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_builds_on_an_image_and_pushes_what_it_built() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    fs::create_dir(registry.path("buildah")).unwrap();
    let buildah = Buildah(&registry);
    let address = registry.server.address.to_string();
    let image = registry.image("team/app:1");
    let login = |token| {
        buildah.command(&["login", "--tls-verify=false", "-u", "me", "-p", token, &address])
    };
    fails("buildah", &mut login("wrong"), "invalid username/password");
    succeeds("buildah", &mut login(TEAM));

    let container = buildah.run(&["from", "--tls-verify=false", &image]);
    fs::write(registry.path("added"), "added").unwrap();
    let added = registry.path("added");
    buildah.run(&["copy", &container, added.to_str().unwrap(), "/added"]);
    let built = buildah.run(&["commit", "--quiet", &container, "localhost/built:1"]);
    let target = format!("docker://{}", registry.image("team/built:1"));
    let file = registry.path("digest");
    let push = ["push", "--tls-verify=false", "--digestfile", file.to_str().unwrap()];
    buildah.run(&[&push[..], &["localhost/built:1", &target]].concat());
    let (digest, _, document) = registry.manifest("team/built", "1").await;
    assert_eq!(fs::read_to_string(file).unwrap(), digest.to_string());
    assert_eq!(document["config"]["digest"], format!("sha256:{built}"));
    assert_eq!(layer_digests(&document).len(), 2);

    buildah.run(&["rm", "--all"]);
    buildah.run(&["rmi", "--all", "--force"]);
    let pulled =
        buildah.run(&["pull", "--quiet", "--tls-verify=false", &registry.image("team/built:1")]);
    assert_eq!(pulled, built);
    let denied = format!("docker://{}", registry.image("other/app:1"));
    fails("buildah", &mut buildah.command(&["push", "--tls-verify=false", &built, &denied]), "403");
}
