//! TLS towards users: of the API, the registry and apps, with the clients that they have.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use longshore_e2e::certificates::Authority;
use longshore_e2e::image::checked;
use longshore_e2e::{Platform, UpOptions, eventually};

use crate::scene::{busybox, web_file};

/// What curl says of an address, believing `ca` alone: the body, or why there is none.
fn curl(ca: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--cacert"])
        .arg(ca)
        .args(arguments)
        .output()
        .context("cannot run curl")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    anyhow::ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

#[test]
fn users_reach_everything_by_tls_with_their_own_clients() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::make(&dir.path().join("ca")).unwrap();
    let apps = dir.path().join("apps");
    std::fs::create_dir(&apps).unwrap();
    authority.issue(dir.path(), "api", "IP:127.0.0.1,DNS:longshore.test").unwrap();
    authority.issue(&apps, "apps", "DNS:*.apps.test").unwrap();
    let path = |name: &str| dir.path().join(name);
    let config = format!(
        "domain = \"apps.test\"\ntls_cert = {:?}\ntls_key = {:?}\ntls_ca = {:?}\ningress_tls = {apps:?}\n\
         ingress_tls_listen = \"127.0.0.1:0\"\ningress_redirect = true\n",
        path("api.pem"),
        path("api.key"),
        authority.ca(),
    );
    let platform = Platform::start_with(&UpOptions { config, ..UpOptions::default() }).unwrap();
    let (api, ca) = (platform.endpoints().api.clone(), authority.ca());

    // The API: by HTTP/2, to who knows whom to trust, and to nobody in the clear.
    let version = ["--write-out", " %{http_version}", &format!("{api}/v1/health")];
    assert!(curl(&ca, &version).unwrap().ends_with("} 2"));
    let another = Authority::make(&path("another")).unwrap();
    let believing = |authority: &Authority| {
        platform.run(&["ps", "--ca", &authority.ca().display().to_string()])
    };
    believing(&another).fails(6, &["invalid peer certificate", "--ca names the file"]);
    believing(&authority).ok();
    let plain = api.replace("https://", "http://");
    platform.run(&["ps", "--api", &plain]).fails(1, &["status 400"]);
    // This machine's root needs no certificate to look after it.
    let here = platform.command(&["ps"]).output().unwrap();
    assert!(here.status.success(), "{here:?}");

    // The registry: log in and push, and run what was pushed.
    let credentials = ["--username", "anyone", "--password", platform.token()];
    let registry = platform.endpoints().registry.as_str();
    for client in ["skopeo", "podman"] {
        let mut login = platform.tool(client);
        login.arg("login").arg("--cert-dir").arg(ca.parent().unwrap()).args(credentials);
        login.arg("--authfile").arg(path(client)).arg(registry);
        checked(&mut login).unwrap();
    }
    let image = busybox(&platform, "one");
    let mut push = platform.tool("skopeo");
    push.args(["--insecure-policy", "copy", "--quiet", "--dest-cert-dir"])
        .arg(ca.parent().unwrap());
    push.arg("--authfile").arg(path("skopeo")).arg(image.source());
    push.arg(format!("docker://{registry}/default/web:1"));
    checked(&mut push).unwrap();
    let manifest = web_file(&platform, "1", 1, "");
    checked(&mut platform.command(&["deploy", "--file", &manifest])).unwrap();

    // Its page, by the certificate for all hosts of apps.
    let tls_port = port_of_ingress(&platform).context(platform.log_tail()).unwrap();
    let name = "web.apps.test";
    let resolve = format!("{name}:{tls_port}:127.0.0.1");
    let address = format!("https://{name}:{tls_port}/");
    let page = curl(&ca, &["--resolve", &resolve, &address]).unwrap();
    assert_eq!(page.trim(), "one");
    // Who comes in the clear is sent there.
    assert_eq!(platform.get(name, "/").unwrap().status, 308);
    let plain_port = platform.ingress_address().port();
    let plain = format!("{name}:{plain_port}:127.0.0.1");
    let address = format!("http://{name}:{plain_port}/");
    let sent = curl(&ca, &["--location", "--resolve", &plain, "--resolve", &resolve, &address]);
    assert_eq!(sent.unwrap().trim(), "one");

    // Renewed by another authority, it is shown without a restart.
    another.issue(dir.path(), "api", "IP:127.0.0.1").unwrap();
    let health = format!("{api}/v1/health");
    let renewed = || Ok(curl(&another.ca(), &[&health]).ok());
    eventually("the new certificate is shown", renewed).unwrap();
    curl(&ca, &[&health]).unwrap_err();
    platform.finish();
}

/// Where the ingress speaks TLS, as its flags say.
fn port_of_ingress(platform: &Platform) -> Option<u16> {
    let arguments = platform.role("ingress").ok()?.arguments;
    let at = arguments.iter().position(|argument| argument == "--tls-listen")?;
    arguments.get(at + 1)?.rsplit(':').next()?.parse().ok()
}
