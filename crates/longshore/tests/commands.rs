//! The commands against a played API, in a sealed home: what they ask, what they show, how they end.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use longshore_api::links::{Channel, EXEC_PROTOCOL, FromCommand, MAX_EXEC_MESSAGE};
use longshore_link::{Refusal, Service, Upgrade, WebSocket};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// What the API answers, by method and path; the requests that it got, with their token.
#[derive(Clone, Default)]
struct Played {
    answers: Arc<BTreeMap<String, (u16, String)>>,
    /// What is said over a WebSocket, whoever asks for one.
    messages: Arc<Vec<Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Says what is to be said, each time after something came when it begins with a 0.
async fn talk(played: Played, socket: WebSocket) {
    let (mut sender, mut receiver) = socket.split();
    for message in played.messages.iter() {
        match message.split_first() {
            Some((0, answer)) => {
                let heard = receiver.receive().await.unwrap().unwrap();
                let text = String::from_utf8_lossy(&heard).into_owned();
                played.asked.lock().unwrap().push(text);
                sender.send(answer.to_vec()).await.unwrap();
            }
            _ => sender.send(message.clone()).await.unwrap(),
        }
    }
    while let Ok(Some(_)) = receiver.receive().await {}
}

async fn answer(
    State(played): State<Played>,
    upgrade: Result<Upgrade, Refusal>,
    request: Request,
) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    let asked = format!("{} {path}", request.method());
    let token = request.headers().get("authorization").map(|value| value.to_str().unwrap());
    played.asked.lock().unwrap().push(format!("{asked} {}", token.unwrap_or("-")));
    if let Ok(upgrade) = upgrade {
        let upgrade = upgrade.websocket(EXEC_PROTOCOL, MAX_EXEC_MESSAGE + 1).unwrap();
        let service = Service::new(CancellationToken::new());
        return upgrade.accept(&service, "exec", |socket| talk(played, socket));
    }
    match played.answers.get(&asked) {
        Some((status, body)) => {
            (StatusCode::from_u16(*status).unwrap(), body.clone()).into_response()
        }
        None => {
            (StatusCode::NOT_FOUND, problem("not-found", "there is no such thing")).into_response()
        }
    }
}

fn problem(code: &str, detail: &str) -> String {
    let status = if code == "not-found" { 404 } else { 403 };
    json!({"code": code, "title": "x", "status": status, "detail": detail}).to_string()
}

/// A home with a platform that is known there.
struct Scene {
    home: tempfile::TempDir,
    api: String,
    played: Played,
    _runtime: tokio::runtime::Runtime,
}

impl Scene {
    fn new(answers: &[(&str, u16, String)]) -> Self {
        Self::with_messages(answers, Vec::new())
    }

    fn with_messages(answers: &[(&str, u16, String)], messages: Vec<Vec<u8>>) -> Self {
        let answers = answers
            .iter()
            .map(|(asked, status, body)| ((*asked).to_owned(), (*status, body.clone())))
            .collect();
        let messages = Arc::new(messages);
        let played = Played { answers: Arc::new(answers), messages, ..Played::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let router = Router::new().fallback(answer).with_state(played.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });

        let home = tempfile::tempdir().unwrap();
        let token_file = home.path().join("token");
        std::fs::write(&token_file, "lsh_kept\n").unwrap();
        let config = home.path().join(".config/longshore");
        std::fs::create_dir_all(&config).unwrap();
        let context = json!({
            "api": api, "registry": "127.0.0.1:1", "ingress": "127.0.0.1:1",
            "token_file": token_file,
        });
        std::fs::write(config.join("context.json"), context.to_string()).unwrap();
        Self { home, api, played, _runtime: runtime }
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
        let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .envs(environment.iter().copied())
            .current_dir(self.home.path())
            .output()
            .unwrap();
        Finished::from(output)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.played.asked.lock().unwrap())
    }
}

#[derive(Debug)]
struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn instance(id: &str, phase: &str, note: Option<&str>) -> Value {
    json!({
        "project": "default", "app": "web", "release": 1, "location": "here", "node": "n1",
        "draining": false, "created_at": 0,
        "observed": {
            "instance": id, "generation": 1, "phase": phase, "note": note, "address": null,
            "restarts": 0, "last_exit": null, "started_at": null, "ready_at": null,
            "path": null, "stages": [],
        },
    })
}

fn app(ready: u32) -> Value {
    json!({
        "project": "default", "app": "web", "release": 1, "image": "default/web:1", "count": 1,
        "ready": ready, "outdated": 0, "hosts": ["web.localhost"],
        "urls": ["http://web.localhost:8080"], "state": "rolling",
        "note": null, "generation": 1,
    })
}

const WEB: &str = "app = \"web\"\nimage = \"default/web:1\"\n";
const PROJECT: &str = "/v1/projects/default";

fn deployed(ready: u32, phase: &str, note: Option<&str>) -> Vec<(&'static str, u16, String)> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let manifest =
        longshore_types::Manifest::from_document(&json!({"app": "web", "image": "default/web:1"}));
    let release = json!({
        "number": 1, "manifest": manifest.unwrap(), "image_digest": digest, "created_at": 0,
    });
    let response = json!({"release": release, "changed": true}).to_string();
    let view = json!({"apps": [app(ready)], "instances": [instance("web-00000001", phase, note)]});
    vec![
        ("PUT /v1/projects/default/apps/web", 200, response),
        ("GET /v1/projects/default/watch?app=web", 200, format!("{view}\n")),
        ("GET /v1/projects/default/apps/web", 200, app(ready).to_string()),
    ]
}

#[test]
fn a_deploy_ends_when_all_is_healthy() {
    let scene = Scene::new(&deployed(1, "healthy", None));
    scene.write("longshore.toml", WEB);
    let finished = scene.run(&["deploy"], &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stdout, "web r1: 1 of 1 healthy\n  http://web.localhost:8080\n");
    assert!(finished.stderr.contains("web-00000001  r1 on here/n1: healthy"), "{finished:?}");
    let json = scene.run(&["deploy", "--json", "--no-wait"], &[]);
    let data: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&data["changed"], &data["app"]["ready"]), (&json!(true), &json!(1)));
}

#[test]
fn a_deploy_that_is_late_says_why() {
    let scene = Scene::new(&deployed(0, "backoff", Some("exited with code 7")));
    scene.write("longshore.toml", WEB);
    let finished = scene.run(&["deploy", "--timeout", "300ms"], &[]);
    assert_eq!(finished.code, Some(7), "{finished:?}");
    assert_eq!(finished.stdout, "");
    for part in ["not healthy after 300ms", "web-00000001", "exited with code 7", "hint:"] {
        assert!(finished.stderr.contains(part), "{part}: {finished:?}");
    }
}

#[test]
fn a_wrong_manifest_never_leaves_the_machine() {
    let scene = Scene::new(&[]);
    scene.write("wrong.toml", "app = \"web\"\nimagee = \"x\"\ncount = -1\n");
    let finished = scene.run(&["deploy", "-f", "wrong.toml"], &[]);
    assert_eq!(finished.code, Some(3), "{finished:?}");
    for part in ["wrong.toml", "did you mean \"image\"", "count = -1"] {
        assert!(finished.stderr.contains(part), "{part}: {finished:?}");
    }
    assert_eq!(scene.asked(), [""; 0]);
}

#[test]
fn the_token_of_a_flag_wins_over_the_environment_and_that_over_the_context() {
    let scene = Scene::new(&[("GET /v1/projects/default/apps", 200, "[]".to_owned())]);
    scene.write("file", "lsh_file\n");
    let variable = [("LONGSHORE_TOKEN", "lsh_variable")];
    let variables = [("LONGSHORE_TOKEN_FILE", "file"), ("LONGSHORE_API", scene.api.as_str())];
    for (flags, environment, token) in [
        (&[][..], &[][..], "lsh_kept"),
        (&[], &variable, "lsh_variable"),
        (&[], &variables, "lsh_file"),
        (&["--token-file", "file"], &variable, "lsh_file"),
        (&["--token", "lsh_flag"], &variables, "lsh_flag"),
    ] {
        let finished = scene.run(&[&["apps"], flags].concat(), environment);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(scene.asked(), [format!("GET {PROJECT}/apps Bearer {token}")]);
    }
}

#[test]
fn failures_have_their_exit_code() {
    let denied = problem("forbidden", "the token does not allow this");
    let scene = Scene::new(&[("GET /v1/projects/default/apps", 403, denied)]);
    for (arguments, code, part) in [
        (&["apps"][..], 5, "does not allow"),
        (&["releases", "absent"], 4, "no such thing"),
        (&["stop", "absent"], 4, "there is no app and no instance absent"),
        (&["stop", "Wrong!"], 3, "neither the id"),
        (&["apps", "--api", "http://127.0.0.1:1"], 6, "longshore up"),
        (&["apps", "--api", "https://:4600"], 3, "https://:4600"),
        (&["apps", "--token-file", "absent"], 5, "absent"),
        (&["deploi"], 2, "'deploy'"),
        (&["scale", "web=many"], 2, "many"),
        (&["token", "create", "none"], 2, "rights"),
        (&["up", "--api-listen", "192.0.2.1:1"], 3, "until TLS is configured"),
    ] {
        let finished = scene.run(arguments, &[]);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(part), "{part:?} in {finished:?}");
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
}

#[test]
fn what_looks_like_an_instance_may_be_an_app() {
    // `my-database` has the form of an id of an instance of `my`.
    let view = json!({
        "project": "default", "app": "my-database", "release": 1, "image": "a/b", "count": 0,
        "ready": 0, "outdated": 0, "hosts": [], "state": "stopped", "note": null, "generation": 1,
    });
    let scene = Scene::new(&[
        ("GET /v1/projects/default/apps/my-database", 200, view.to_string()),
        ("POST /v1/projects/default/apps/my-database/scale", 200, view.to_string()),
    ]);
    let finished = scene.run(&["stop", "my-database"], &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let asked = scene.asked();
    assert!(asked[0].contains("/instances/my-database"), "{asked:?}");
    assert!(asked[2].starts_with("POST"), "{asked:?}");
}

/// A platform with one instance, in which a command says this.
fn with_command(messages: Vec<Vec<u8>>) -> Scene {
    let view = instance("web-00000001", "healthy", None).to_string();
    let path = "GET /v1/projects/default/instances/web-00000001";
    Scene::with_messages(&[(path, 200, view)], messages)
}

#[test]
fn exec_passes_output_and_exit_code_on() {
    let scene = with_command(vec![
        Channel::Stdout.message(b"out\n"),
        Channel::Stderr.message(b"err\n"),
        Channel::control(&FromCommand::Exit { code: 7 }),
    ]);
    let finished = scene.run(&["exec", "web-00000001", "-e", "A=b", "--", "ls", "a b"], &[]);
    assert_eq!(finished.code, Some(7), "{finished:?}");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    let query = "command=ls&command=a+b&env=A%3Db";
    let asked = format!("GET {PROJECT}/instances/web-00000001/exec?{query} Bearer lsh_kept");
    assert_eq!(scene.asked()[1], asked);
}

#[test]
fn exec_passes_input_on_and_says_where_it_ends() {
    let after = |message: Vec<u8>| [&[0][..], &message].concat();
    let scene = with_command(vec![
        after(Channel::control(&FromCommand::Taken { bytes: 5 })),
        after(Channel::control(&FromCommand::Exit { code: 0 })),
    ]);
    scene.write("input", "typed");
    let script = format!("{} exec -i web-00000001 -- cat < input", env!("CARGO_BIN_EXE_longshore"));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &script]).env_clear().env("HOME", scene.home.path());
    let finished = Finished::from(shell.current_dir(scene.home.path()).output().unwrap());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(scene.asked()[2..], ["\0typed", "\u{3}{\"eof\":{}}"]);
}

#[test]
fn exec_that_is_lost_or_makes_no_sense_fails() {
    for (last, code, part) in [
        (Channel::control(&FromCommand::Failed { message: "gone".to_owned() }), 1, "gone"),
        (b"\x03nonsense".to_vec(), 6, "not understood"),
        (b"\x09nonsense".to_vec(), 6, "not understood"),
    ] {
        let scene = with_command(vec![Channel::Stdout.message(b"out\n"), last]);
        let finished = scene.run(&["exec", "web-00000001", "--", "true"], &[]);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stderr.contains(part), "{part}: {finished:?}");
    }
    // No terminal is there.
    let scene = with_command(Vec::new());
    let finished = scene.run(&["exec", "-it", "web-00000001", "--", "true"], &[]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert_eq!(scene.asked(), [""; 0]);
}

#[test]
fn exec_in_an_app_takes_its_first_healthy_instance() {
    let instances = json!([
        instance("web-00000001", "starting", None),
        instance("web-00000002", "healthy", None),
    ]);
    let answers = [
        ("GET /v1/projects/default/apps/web", 200, app(1).to_string()),
        ("GET /v1/projects/default/instances?app=web", 200, instances.to_string()),
    ];
    let exit = Channel::control(&FromCommand::Exit { code: 0 });
    let scene = Scene::with_messages(&answers, vec![exit]);
    let finished = scene.run(&["exec", "web", "--", "true"], &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("in web-00000002"), "{finished:?}");
    assert!(scene.asked()[2].contains("/instances/web-00000002/exec?"), "{finished:?}");
}

/// An archive whose entries have any name: a type, a name, and a link's target or a file's text.
fn archive(entries: &[(u8, &str, &str)]) -> String {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = tar::Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkflag[0] = *kind;
        let is_file = *kind == b'0';
        if !is_file {
            fields.linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let text = if is_file { text } else { "" };
        header.set_mode(0o4755);
        header.set_size(text.len() as u64);
        header.set_cksum();
        tar.append(&header, text.as_bytes()).unwrap();
    }
    String::from_utf8(tar.into_inner().unwrap()).unwrap()
}

/// A platform whose one instance has this for its files, at `/x`.
fn with_files(archive: String) -> Scene {
    let view = instance("web-00000001", "healthy", None).to_string();
    let path = "/v1/projects/default/instances/web-00000001";
    let (show, read) = (format!("GET {path}"), format!("GET {path}/archive?path=%2Fx"));
    Scene::new(&[(&show, 200, view), (&read, 200, archive)])
}

#[test]
fn cp_of_a_hostile_instance_makes_nothing_but_what_is_in_the_destination() {
    let outside = ["../escaped", "a/../../escaped"].map(|name| (b'0', name, "changed"));
    for entry in outside {
        let scene = with_files(archive(&[(b'5', "x", ""), entry]));
        let finished = scene.run(&["cp", "web-00000001:/x", "out"], &[]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(!scene.home.path().join("escaped").exists(), "{finished:?}");
    }
    let scene = with_files(archive(&[
        (b'5', "x", ""),
        (b'2', "x/absolute", "/etc"),
        (b'2', "x/up", "../../token"),
        (b'3', "x/device", ""),
        (b'6', "x/pipe\x1b[2J", ""),
        (b'2', "x/fine", "run"),
        (b'0', "x/run", "text"),
        (b'0', "/x/../x/never", "text"),
    ]));
    let finished = scene.run(&["cp", "web-00000001:/x", "out"], &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let out = scene.home.path().join("out");
    let mode = std::os::unix::fs::PermissionsExt::mode;
    assert_eq!(mode(&out.join("run").metadata().unwrap().permissions()) & 0o7777, 0o755);
    assert_eq!(std::fs::read_to_string(out.join("fine")).unwrap(), "text");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2, "{finished:?}");

    let scene = with_files(archive(&[
        (b'5', "x", ""),
        (b'2', "x/up", "../../token"),
        (b'6', "x/pipe\x1b[2J", ""),
        (b'0', "x/run", "text"),
    ]));
    let finished = scene.run(&["cp", "web-00000001:/x", "out"], &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for part in ["left out out/up: a link that", "out/pipe\\u{1b}[2J: ", "2 files are left out"] {
        assert!(finished.stderr.contains(part), "{part}: {finished:?}");
    }
    // The archive itself is anybody's to read.
    let finished = scene.run(&["cp", "web-00000001:/x", "-"], &[]);
    assert_eq!((finished.code, finished.stdout.len() % 512), (Some(0), 0), "{finished:?}");
}

#[test]
fn cp_says_what_is_missing_and_what_makes_no_sense() {
    let scene = with_files(archive(&[(b'0', "x", "text")]));
    for (arguments, code, part) in [
        (&["web-00000001:/no", "here"][..], 4, "there is no such thing"),
        (&["web-00000001:/x", "no/such/place"], 4, "no/such does not exist"),
        (&["web-00000001:/x", "token/x"], 3, "token/x is not a directory"),
        (&["no-such-file", "web-00000001:/x"], 4, "no-such-file does not exist"),
        (&["a", "b"], 2, "neither side is in an instance"),
        (&["web:/a", "web:/b"], 2, "only one side"),
        (&["-", "-"], 2, "neither side"),
        (&["web:", "b"], 2, "no path after the colon"),
    ] {
        let finished = scene.run(&[&["cp"], arguments].concat(), &[]);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(part), "{arguments:?}: {finished:?}");
    }
    let finished = scene.run(&["cp", "web-00000001:/x", "here"], &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
    assert_eq!(std::fs::read_to_string(scene.home.path().join("here")).unwrap(), "text");
}

#[test]
fn without_a_platform_the_way_to_one_is_shown() {
    let scene = Scene::new(&[]);
    let context = scene.home.path().join(".config/longshore/context.json");
    std::fs::remove_file(context).unwrap();
    if Path::new("/var/lib/longshore/endpoints.json").exists() {
        return; // This machine has a platform, which is then meant.
    }
    let finished = scene.run(&["ps"], &[]);
    assert_eq!(finished.code, Some(6), "{finished:?}");
    assert!(finished.stderr.contains("longshore up"), "{finished:?}");
}

#[test]
fn top_shows_a_table_or_json_once_without_a_terminal() {
    let usage = json!([{
        "instance": "web-00000001", "app": "web", "location": "here", "node": "n1",
        "phase": "healthy", "restarts": 1,
        "limits": {"cpu": 500, "memory": 1 << 28, "pids": 64, "disk": 1 << 30, "open_files": null},
        "usage": {
            "instance": "web-00000001", "at_micros": 7, "cpu_micros": 5, "cpu_periods": 1,
            "cpu_throttled": 0, "memory": 1 << 20, "memory_peak": 1 << 21, "pids": 2,
            "disk": 4096, "received": 1, "sent": 2,
        },
    }]);
    let asked = format!("GET {PROJECT}/usage?app=web");
    let scene = Scene::new(&[
        (&format!("GET {PROJECT}/apps/web"), 200, app(1).to_string()),
        (&asked, 200, usage.to_string()),
    ]);
    let shown = scene.run(&["top", "web"], &[]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let row = "web-00000001  -    -      1M/256M  2M    2/64  4K/1G  1";
    assert!(shown.stdout.ends_with(&format!("{row}\n")), "{}", shown.stdout);
    let json = scene.run(&["top", "web", "--json"], &[]);
    let rows: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows[0]["usage"]["memory_peak"], 1 << 21);
    assert_eq!(scene.asked().iter().filter(|line| line.starts_with(&asked)).count(), 4);
    let missing = scene.run(&["top", "other"], &[]);
    assert_eq!(missing.code, Some(4), "{missing:?}");
}
