//! An app that needs a GPU is on a node that was said to have one, and knows which.

use longshore_api::v1::LocationView;
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::{Value, json};

use crate::scene::{but, script, with_web_on};
use crate::second_node::SecondNode;

/// An app of one instance with so much memory of a GPU.
fn needing(app: &str, gib: u64) -> Value {
    let resources = json!({
        "memory": "32MiB", "cpu": "0.25", "disk": "64MiB",
        "gpu": {"memory": format!("{gib}GiB"), "models": ["h100"]},
    });
    but(script(app, "sleep 1000"), &json!({"resources": resources}))
}

/// On which node the one instance of an app is, and which GPUs it was told.
fn told(platform: &Platform, app: &str) -> (String, String) {
    platform.wait_until_settled(app).unwrap();
    let instance = platform.instances(app).unwrap().remove(0);
    let node = instance.node.to_string();
    let script = "echo $NVIDIA_VISIBLE_DEVICES";
    let output = platform.run(&["exec", app, "--", "/bin/sh", "-c", script]).ok();
    assert_eq!(output.trim(), instance.gpus.to_string());
    (node, output.trim().to_owned())
}

#[test]
fn an_app_goes_to_its_gpu_and_one_that_does_not_fit_waits_until_it_does() {
    let config = "node = \"n1\"\nlocation = \"ams\"\n".to_owned();
    let platform = with_web_on(&UpOptions { config, ..UpOptions::default() });
    platform.deploy_only(&needing("first", 60)).unwrap();
    let lacks = "no location has 1 GPU of h100 with 60 GiB free";
    let waits = || Ok(platform.run(&["explain", "first"]).ok().contains(lacks).then_some(()));
    eventually("it waits for a GPU", waits).unwrap();

    let gpus = ["--gpu", "l4:24GiB", "--gpu", "h100:80GiB"];
    let second = SecondNode::start(&platform, &gpus);
    assert_eq!(told(&platform, "first"), ("n2".to_owned(), "1".to_owned()));
    let shown = platform.run(&["nodes"]).ok();
    assert!(shown.lines().any(|line| line == "n2    1    h100   60 GiB of 80 GiB"), "{shown}");
    platform.deploy(&needing("beside", 20)).unwrap();
    assert_eq!(told(&platform, "beside"), ("n2".to_owned(), "1".to_owned()));

    // The GPU is full.
    let plan = platform.call::<Value>(
        "POST",
        "/v1/projects/default/apps/next/plan",
        Some(json!({"manifest": needing("next", 30)})),
    );
    let why = plan.unwrap()["waiting"]["decision"]["candidates"][0]["why"].to_string();
    let lacks = "needs 1 GPU of h100 with 30 GiB free, the largest free is 0 B";
    assert!(why.contains(lacks), "{why}");
    platform.deploy_only(&needing("next", 30)).unwrap();
    let waits = || Ok(platform.run(&["explain", "next"]).ok().contains(lacks).then_some(()));
    eventually("it is said why it waits", waits).unwrap();

    // Whoever plans starts anew, and knows what is taken.
    for role in ["global", "location"] {
        platform.role(role).unwrap().kill().unwrap();
    }
    let back = || {
        let location: LocationView = platform.call("GET", "/v1/locations/ams", None)?;
        Ok((location.n_reachable == 2).then_some(()))
    };
    eventually("both nodes are there again", back).unwrap();
    eventually("it still waits", waits).unwrap();

    platform.remove("first").unwrap();
    assert_eq!(told(&platform, "next"), ("n2".to_owned(), "1".to_owned()));
    for app in ["beside", "next"] {
        platform.remove(app).unwrap();
    }
    second.finish();
    platform.finish();
}
