//! oras, which pushes what is no image and lists what is about one.

use super::*;

struct Oras<'a>(&'a Harness);

impl Oras<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = newer_debian("oras");
        command.args(args).env("DOCKER_CONFIG", self.0.path("oras")).current_dir(self.0.dir.path());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        succeeds("oras", &mut self.command(args))
    }

    fn log_in(&self, token: &str) {
        let address = self.0.server.address.to_string();
        self.run(&["login", "--plain-http", "-u", "me", "-p", token, &address]);
    }

    /// The digests about an image, as oras finds them by one way or the other.
    fn about(&self, image: &str, way: &str) -> Vec<String> {
        let found = self.run(&[
            "discover",
            "--plain-http",
            "--distribution-spec",
            way,
            "--format",
            "json",
            image,
        ]);
        let found: Value = serde_json::from_str(&found).unwrap();
        let manifests = found["manifests"].as_array().unwrap().iter();
        manifests.map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_pushes_pulls_copies_lists_and_deletes() {
    let registry = Harness::new().await;
    let oras = Oras(&registry);
    let artifact = registry.image("team/file:1");
    fs::write(registry.path("hello.txt"), "hello").unwrap();
    let push = ["push", "--plain-http", &artifact, "hello.txt:text/plain"];
    fails("oras", &mut oras.command(&push), "unauthorized");
    oras.log_in(ADMIN);
    oras.run(&push);
    let out = registry.path("out");
    oras.run(&["pull", "--plain-http", "-o", out.to_str().unwrap(), &artifact]);
    assert_eq!(fs::read_to_string(out.join("hello.txt")).unwrap(), "hello");

    let copy = registry.image("team/copy:1");
    oras.run(&["cp", "--from-plain-http", "--to-plain-http", &artifact, &copy]);
    let digest = oras.run(&["resolve", "--plain-http", &artifact]);
    assert_eq!(oras.run(&["resolve", "--plain-http", &copy]), digest);
    assert_eq!(registry.manifest("team/copy", "1").await.0.to_string(), digest);
    oras.run(&["tag", "--plain-http", &copy, "2"]);
    let repository = registry.image("team/copy");
    assert_eq!(oras.run(&["repo", "tags", "--plain-http", &repository]), "1\n2");
    let address = registry.server.address.to_string();
    assert_eq!(oras.run(&["repo", "ls", "--plain-http", &address]), "team/copy\nteam/file");

    oras.run(&["manifest", "delete", "--plain-http", "--force", &copy]);
    assert_eq!(oras.run(&["repo", "tags", "--plain-http", &repository]), "");
    let layer = Digest::from_hex(&server::hex(b"hello")).unwrap();
    let blob = format!("{repository}@{layer}");
    assert_eq!(oras.run(&["blob", "fetch", "--plain-http", "-o", "-", &blob]), "hello");
    oras.run(&["blob", "delete", "--plain-http", "--force", &blob]);
    fails(
        "oras",
        &mut oras.command(&["blob", "fetch", "--plain-http", "-o", "-", &blob]),
        "not found",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_attaches_finds_and_copies_what_is_about_an_image() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    let oras = Oras(&registry);
    oras.log_in(ADMIN);
    let image = registry.image("team/app:1");
    fs::write(registry.path("sbom.json"), "{}").unwrap();
    fs::write(registry.path("sig"), "signed").unwrap();
    let attach = |kind: &str, file: &str| {
        let args = ["attach", "--plain-http", "--artifact-type", kind, &image, file];
        oras.run(&args);
    };
    attach("test/sbom", "sbom.json:application/json");
    attach("test/signature", "sig:text/plain");
    let all = oras.about(&image, "v1.1-referrers-api");
    assert_eq!(all.len(), 2);
    let typed = ["discover", "--plain-http", "--artifact-type", "test/sbom", "--format", "json"];
    let found: Value = serde_json::from_str(&oras.run(&[&typed[..], &[&image]].concat())).unwrap();
    assert_eq!(found["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(found["manifests"][0]["artifactType"], "test/sbom");

    // An image with all that is about it.
    let copy = registry.image("team/copy:1");
    oras.run(&["cp", "-r", "--from-plain-http", "--to-plain-http", &image, &copy]);
    let mut copied = oras.about(&copy, "v1.1-referrers-api");
    copied.sort();
    let mut expected = all.clone();
    expected.sort();
    assert_eq!(copied, expected);

    // What is removed is found no more.
    let one = format!("{}@{}", registry.image("team/app"), all[0]);
    oras.run(&["manifest", "delete", "--plain-http", "--force", &one]);
    assert_eq!(oras.about(&image, "v1.1-referrers-api"), [all[1].clone()]);
}

/// A client that does not know of the endpoint keeps the list in an index under a tag; that works
/// too, and whoever asks the endpoint finds what was attached that way.
#[tokio::test(flavor = "multi_thread")]
async fn oras_keeps_the_list_under_a_tag_when_told_to() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    let oras = Oras(&registry);
    oras.log_in(ADMIN);
    let image = registry.image("team/app:1");
    fs::write(registry.path("sig"), "signed").unwrap();
    let way = "v1.1-referrers-tag";
    for kind in ["test/one", "test/two"] {
        let attach =
            ["attach", "--plain-http", "--distribution-spec", way, "--artifact-type", kind];
        oras.run(&[&attach[..], &[&image, "sig:text/plain"]].concat());
    }
    let mut by_tag = oras.about(&image, way);
    let mut by_endpoint = oras.about(&image, "v1.1-referrers-api");
    by_tag.sort();
    by_endpoint.sort();
    assert_eq!(by_tag.len(), 2);
    assert_eq!(by_tag, by_endpoint);
}
