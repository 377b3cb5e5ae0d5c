//! A token of a role does in its project what the role says, with our CLI and with others' clients.

use std::process::Stdio;

use longshore_e2e::Platform;
use longshore_e2e::cli::Finished;

use crate::scene::{busybox, page, with_web};

/// The CLI with another token than the administrator's.
fn run_as(platform: &Platform, token: &str, arguments: &[&str]) -> Finished {
    let mut command = platform.client(arguments);
    command.env("LONGSHORE_TOKEN", token).stdin(Stdio::null());
    Finished::new(arguments, command.output().unwrap())
}

#[test]
fn a_token_of_a_role_does_what_the_role_says() {
    let platform = with_web();
    let token = |name: &str, role: &str| {
        let made = platform.run(&["token", "create", name, "--role", role]).ok();
        made.trim().to_owned()
    };
    let (reader, deployer) = (token("looks", "read"), token("ci", "deploy"));
    let listed = platform.run(&["token", "ls"]).ok();
    assert!(listed.contains("deploy in default"), "{listed}");

    let file = platform.dir().join("web.toml");
    std::fs::write(&file, "app = \"web\"\nimage = \"default/web:2\"\nport = 8080\n").unwrap();
    let deploy = ["deploy", "--file", file.to_str().unwrap()];
    let layout = busybox(&platform, "two");
    let push = |token: &str| {
        let mut skopeo = platform.tool("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        skopeo.args(["--dest-creds", &format!("anyone:{token}"), &layout.source()]);
        let to = format!("docker://{}/default/web:2", platform.endpoints().registry);
        longshore_e2e::image::checked(skopeo.arg(to))
    };
    assert!(push(&reader).unwrap_err().to_string().contains("denied"));
    push(&deployer).unwrap();
    run_as(&platform, &reader, &deploy).fails(5, &["needs the role deploy in project default"]);
    run_as(&platform, &deployer, &deploy).ok();
    assert_eq!(page(&platform, "web"), "two");

    for (token, arguments) in [
        (&reader, &["ps", "web"][..]),
        (&reader, &["releases", "web"]),
        (&reader, &["plan", "--file", file.to_str().unwrap()]),
        (&deployer, &["scale", "web=2"]),
    ] {
        run_as(&platform, token, arguments).ok();
    }
    for (token, arguments, why) in [
        (&reader, &["rm", "web"][..], "needs the role deploy"),
        (&reader, &["ps", "--project", "other"], "needs the role read in project other"),
        (&deployer, &["token", "ls"], "needs the role admin in some project"),
        (&deployer, &["secret", "rotate-key"], "not of an administrator of the platform"),
    ] {
        run_as(&platform, token, arguments).fails(5, &[why]);
    }
    let events = run_as(&platform, &reader, &["events"]).ok();
    for line in
        ["default  deploy    web r1", "default  complete  web r1", "scale     web from 1 to 2"]
    {
        assert!(events.contains(line), "no {line:?} in {events}");
    }
    assert!(events.contains("ci          127.0.0.1:") && !events.contains("token"), "{events}");
    platform.run(&["token", "rm", "ci"]).ok();
    run_as(&platform, &deployer, &["ps"]).fails(5, &["not known here"]);
    platform.finish();
}
