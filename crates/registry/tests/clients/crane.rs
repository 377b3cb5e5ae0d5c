//! crane, of which Kubernetes' tools are made.

use super::*;

struct Crane<'a>(&'a Harness);

impl Crane<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = newer_debian("crane");
        command.args(args).env("DOCKER_CONFIG", self.0.path("crane"));
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        succeeds("crane", &mut self.command(args))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_pushes_pulls_copies_lists_and_deletes() {
    let registry = Harness::new().await;
    let crane = Crane(&registry);
    let address = registry.server.address.to_string();
    let layout = registry.path("layout").display().to_string();
    let image = registry.image("team/app:1");
    fails("crane", &mut crane.command(&["push", &layout, &image]), "unauthorized");
    crane.run(&["auth", "login", "-u", "me", "-p", ADMIN, &address]);

    crane.run(&["push", &layout, &image]);
    let packed = registry.packed.digest.to_string();
    assert_eq!(crane.run(&["digest", &image]), packed);
    crane.run(&["validate", "--remote", &image]);
    let pulled = registry.path("pulled");
    crane.run(&["pull", "--format", "oci", &image, pulled.to_str().unwrap()]);
    for digest in [registry.packed.digest, registry.packed.config, registry.packed.layer] {
        let blob = format!("blobs/sha256/{}", digest.hex());
        let bytes = fs::read(pulled.join(&blob)).unwrap();
        assert!(bytes == fs::read(registry.path("layout").join(&blob)).unwrap(), "{blob}");
    }

    let copy = registry.image("team/copy:1");
    crane.run(&["copy", &image, &copy]);
    crane.run(&["tag", &copy, "2"]);
    assert_eq!(crane.run(&["digest", &registry.image("team/copy:2")]), packed);
    let repository = format!("{address}/team/copy");
    assert_eq!(crane.run(&["ls", &repository]), "1\n2");
    assert_eq!(crane.run(&["catalog", &address]), "team/app\nteam/copy");

    crane.run(&["delete", &registry.image("team/copy:2")]);
    assert_eq!(crane.run(&["ls", &repository]), "1");
    crane.run(&["delete", &format!("{repository}@{packed}")]);
    fails("crane", &mut crane.command(&["digest", &copy]), "manifest_unknown");
    assert_eq!(crane.run(&["digest", &image]), packed);
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_is_told_what_a_token_may_not_do() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    let crane = Crane(&registry);
    let address = registry.server.address.to_string();
    crane.run(&["auth", "login", "-u", "me", "-p", TEAM, &address]);
    let image = registry.image("team/app:1");
    crane.run(&["copy", &image, &registry.image("team/copy:1")]);
    let copy = ["copy", &image, &registry.image("other/app:1")];
    // It asks by HEAD first, whose answer has no text.
    fails("crane", &mut crane.command(&copy), "403 forbidden");
    fails("crane", &mut crane.command(&["delete", &image]), "denied");
    // What it may see of the catalog is what it may pull.
    assert_eq!(crane.run(&["catalog", &address]), "team/app\nteam/copy");
}
