//! `fuzz-api`: requests made from the OpenAPI document, the right ones and the wrong ones, against a
//! platform that runs two apps.
//!
//! schemathesis makes them and looks at every answer: no error of the server's own, statuses, types and
//! bodies as the document has them, no way past the token. A document in which paths have the names of
//! what is there is made for it, because random names would find nothing behind the first look.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use longshore_e2e::{Platform, UpOptions, image};
use serde_json::{Value, json};

use crate::command::{cargo, program, repository_root, run, target_dir};
use crate::packages;

/// Where it comes from and which one it is.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// What is looked at in every answer. Not: that whatever the schema allows succeeds, which the state of a
/// platform may forbid.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      negative_data_rejection,unsupported_method,allow_header_conformance,ignored_auth";

/// How long, and from which seed.
#[derive(Args)]
pub struct Options {
    /// How many requests for each operation at most
    #[arg(long, default_value_t = 200)]
    requests: u32,
    /// The seed of a run to repeat [default: another one each time]
    #[arg(long)]
    seed: Option<u32>,
}

/// Searches.
pub fn run_all(options: &Options) -> Result<()> {
    packages::ensure(&[("python3-venv", "the fuzzer of the API")])?;
    let schemathesis = installed()?;
    if std::env::var_os("LONGSHORE_BIN").is_none() {
        run(&mut cargo(["build", "--release", "--locked"]))?;
    }
    let dir = tempfile::tempdir()?;
    let config = "api_rate = 100000\n".to_owned();
    let platform = Platform::start_with(&UpOptions { config, ..UpOptions::default() })?;
    platform.push(&image::busybox(dir.path(), "image", "hello")?, "default/web:1")?;
    for app in ["web", "worker"] {
        platform.deploy(&json!({
            "app": app, "image": "default/web:1", "port": 8080, "count": 2,
            "resources": {"memory": "32MiB", "disk": "64MiB"},
        }))?;
    }
    let global = platform.role("global")?.pid;
    let document = dir.path().join("openapi.json");
    fs::write(&document, serde_json::to_string(&narrowed(&platform)?)?)?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u32(..));
    println!("seed {seed}");
    let mut fuzzer = program(schemathesis.to_str().context("a path of UTF-8")?, ["run"]);
    fuzzer
        .arg(&document)
        .args(["--url", &platform.endpoints().api, "--checks", CHECKS])
        .args(["--header", &format!("Authorization: Bearer {}", platform.token())])
        .args(["--max-examples", &options.requests.to_string(), "--seed", &seed.to_string()])
        .args(["--request-timeout", "30", "--phases", "coverage,fuzzing", "--continue-on-failure"])
        .args(["--rate-limit", "auto", "--warnings", "off", "--suppress-health-check", "all"])
        .current_dir(dir.path());
    run(&mut fuzzer)?;
    ensure!(platform.role("global")?.pid == global, "the control plane died and was started again");
    let log = fs::read_to_string(platform.log_path())?;
    ensure!(!log.contains("panicked"), "something panicked:\n{}", platform.log_tail());
    platform.finish();
    Ok(())
}

/// The program, which is fetched once.
fn installed() -> Result<PathBuf> {
    let venv = target_dir().join(SCHEMATHESIS.replace("==", "-"));
    let program_path = venv.join("bin/schemathesis");
    if !program_path.exists() {
        run(program("python3", ["-m", "venv"]).arg(&venv))?;
        let pip = venv.join("bin/pip");
        run(program(
            pip.to_str().context("a path of UTF-8")?,
            ["install", "--quiet", SCHEMATHESIS],
        )
        .arg("--disable-pip-version-check"))?;
    }
    Ok(program_path)
}

/// The committed document with the names of what is there, without streams that have no end.
fn narrowed(platform: &Platform) -> Result<Value> {
    let text = fs::read_to_string(repository_root().join("openapi/longshore.json"))?;
    let mut document: Value = serde_json::from_str(&text)?;
    let instances = ["web", "worker"].map(|app| platform.instances(app));
    let mut ids = Vec::new();
    for instances in instances {
        ids.extend(instances?.iter().map(|instance| instance.id().to_string()));
    }
    ids.push("web-00000000".to_owned());
    let names = json!({
        "app": ["web", "worker", "new", "none"],
        "instance": ids,
        "location": ["local", "none"],
        "secret": ["db", "other"],
        "token": ["ci", "none"],
    });
    let paths = document["paths"].as_object_mut().context("the document has paths")?;
    paths.retain(|path, _| !path.ends_with("/watch") && !path.ends_with("/exec"));
    for operations in paths.values_mut() {
        for operation in operations.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
            // To the fuzzer an archive is any bytes; `fuzz tar` makes those that nearly are one.
            let bodies =
                operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
            if let Some(bodies) = bodies
                && let Some(archive) = bodies.remove("application/x-tar")
            {
                bodies.insert("application/octet-stream".to_owned(), archive);
            }
            if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut)
            {
                narrow(parameters, &names);
            }
        }
    }
    // Any name is one of a project, and nearly all are of projects without anything in them.
    *paths = std::mem::take(paths)
        .into_iter()
        .map(|(path, operations)| (path.replace("{project}", "default"), operations))
        .collect();
    // Apps that can run, so that some deploys go through.
    let manifest =
        &mut document["components"]["schemas"]["DeployRequest"]["properties"]["manifest"];
    manifest["properties"]["app"] = json!({"enum": ["web", "worker", "new"]});
    manifest["properties"]["project"] = json!({"enum": ["default", "elsewhere"]});
    manifest["properties"]["image"] = json!({"enum": ["default/web:1", "default/none:1"]});
    manifest["properties"]["count"] = json!({"type": "integer", "minimum": 0, "maximum": 2});
    Ok(document)
}

/// Gives the parameters of an operation the names of what is there.
fn narrow(parameters: &mut Vec<Value>, names: &Value) {
    parameters.retain(|parameter| {
        let name = parameter["name"].as_str();
        let in_path = parameter["in"] == "path" && name == Some("project");
        !in_path && name != Some("follow")
    });
    for parameter in parameters.iter_mut().filter(|parameter| parameter["in"] == "path") {
        let name = parameter["name"].as_str().unwrap_or_default();
        if let Some(known) = names.get(name) {
            parameter["schema"] = json!({"type": "string", "enum": known});
        }
    }
}
