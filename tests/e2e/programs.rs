//! Real programs from Debian's packages, unmodified: each is deployed by its own manifest in
//! `tests/programs`, and its own client or benchmark is run against it.
//!
//! What does not speak HTTP has no way in through the ingress: its client runs beside it, by `exec`,
//! or on its node, by the address of the instance.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use longshore_api::v1::InstanceView;
use longshore_e2e::http::Request;
use longshore_e2e::websocket::Message;
use longshore_e2e::{Platform, WebSocket, eventually, programs};
use longshore_types::InstancePhase;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::scene::host;

/// A platform with the program deployed as its manifest says.
fn platform_with(program: &str) -> Platform {
    let platform = Platform::start().unwrap();
    deploy(&platform, program, "");
    platform
}

/// Deploys a program as its manifest says, with further lines before that.
fn deploy(platform: &Platform, program: &str, lines: &str) {
    let image = programs::image(program).unwrap();
    platform.push_from(&image, &format!("default/{program}:debian")).unwrap();
    let manifest = std::fs::read_to_string(programs::recipe(program).join("longshore.toml"));
    let file = platform.dir().join(format!("{program}.toml"));
    std::fs::write(&file, format!("{lines}{}", manifest.unwrap())).unwrap();
    platform.run(&["deploy", "--file", file.to_str().unwrap()]).ok();
}

fn instance(platform: &Platform, app: &str) -> InstanceView {
    platform
        .wait_for_instance(app, "is healthy", |one| one.observed.phase == InstancePhase::Healthy)
        .unwrap()
}

/// What a command in an instance prints, once it is known to have succeeded.
fn exec(
    platform: &Platform,
    instance: &InstanceView,
    options: &[&str],
    command: &[&str],
) -> String {
    let id = instance.id().as_str();
    platform.run(&[&["exec"], options, &[id, "--"], command].concat()).ok()
}

/// The user ids of the processes of an instance whose name begins like this.
fn users(platform: &Platform, instance: &InstanceView, name: &str) -> Vec<String> {
    let script = format!(
        "for f in $(grep -l '^{name}' /proc/[0-9]*/comm); do \
         sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p' ${{f%comm}}status; done | sort -u"
    );
    let found = exec(platform, instance, &[], &["sh", "-c", &script]);
    found.lines().map(str::to_owned).collect()
}

/// The id of a user of the image.
fn user(platform: &Platform, instance: &InstanceView, name: &str) -> String {
    exec(platform, instance, &[], &["id", "-u", name]).trim().to_owned()
}

/// `ab` against the ingress: every request must be answered with 200.
#[track_caller]
fn apache_bench(platform: &Platform, app: &str, path: &str, options: &[&str]) {
    const N_REQUESTS: &str = "2000";
    let url = format!("http://{}{path}", platform.ingress_address());
    let mut ab = Command::new("ab");
    ab.args(["-q", "-l", "-n", N_REQUESTS, "-c", "32", "-H", &format!("Host: {}", host(app))]);
    let output = ab.args(options).arg(&url).output().expect("install the package apache2-utils");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    assert_eq!(field("Complete requests:").as_deref(), Some(N_REQUESTS), "{text}");
    assert_eq!(field("Failed requests:").as_deref(), Some("0"), "{text}");
    assert_eq!(field("Non-2xx responses:"), None, "{text}");
}

/// Stops an instance and checks that it said this before it ended.
fn ends_with(platform: &Platform, instance: &InstanceView, last_words: &str) {
    let id = instance.id().as_str();
    let mut command = platform.client(&["logs", "--follow", id]);
    let follower = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    platform.run(&["stop", id]).ok();
    // The log ends with the instance.
    let output = follower.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(last_words), "{text}");
}

#[test]
fn nginx_serves_with_its_own_users_and_reloads() {
    let platform = platform_with("nginx");
    check_nginx(&platform);
    platform.finish();
}

fn check_nginx(platform: &Platform) {
    let one = instance(platform, "nginx");
    apache_bench(platform, "nginx", "/", &[]);
    apache_bench(platform, "nginx", "/", &["-k"]);
    let large = platform.get(&host("nginx"), "/large").unwrap();
    assert_eq!((large.status, large.body.len()), (200, 8 << 20));

    assert_eq!(users(platform, &one, "nginx"), ["0", &user(platform, &one, "www-data")]);
    let workers = || {
        let files = exec(platform, &one, &[], &["sh", "-c", "grep -l '^nginx' /proc/[0-9]*/comm"]);
        let files: BTreeSet<String> = files.lines().map(str::to_owned).collect();
        files.into_iter().filter(|file| file != "/proc/1/comm").collect::<BTreeSet<_>>()
    };
    let before = workers();
    exec(platform, &one, &[], &["nginx", "-s", "reload"]);
    // The old workers close their idle connections meanwhile, some with a request on its way.
    apache_bench(platform, "nginx", "/", &[]);
    eventually("new workers have taken over", || {
        let now = workers();
        Ok((!now.is_empty() && now.is_disjoint(&before)).then_some(()))
    })
    .unwrap();
    let log = platform.run(&["logs", one.id().as_str()]).ok();
    assert!(log.contains("\"GET / HTTP/1."), "no line of its access log in {log}");
}

#[test]
fn redis_holds_its_benchmark_and_saves() {
    let platform = platform_with("redis");
    check_redis(&platform);
    platform.finish();
}

fn check_redis(platform: &Platform) {
    let redis = instance(platform, "redis");
    let cli = |arguments: &[&str]| {
        exec(platform, &redis, &["--user", "redis"], &[&["redis-cli"], arguments].concat())
    };
    assert_eq!(users(platform, &redis, "redis-server"), [user(platform, &redis, "redis")]);
    let benchmark = ["-n", "5000", "-c", "50", "-P", "4", "-d", "512", "--csv"];
    let tests = ["-t", "set,get,incr,lpush,lrange_100,sadd,hset,zadd,mset"];
    let table =
        exec(platform, &redis, &[], &[&["redis-benchmark"], &benchmark[..], &tests].concat());
    assert!(table.lines().count() > tests[1].split(',').count(), "{table}");

    assert_eq!(cli(&["SET", "greeting", "hello"]).trim(), "OK");
    cli(&["BGSAVE"]);
    eventually("the snapshot is written", || {
        let state = cli(&["INFO", "persistence"]);
        let done = state.contains("rdb_bgsave_in_progress:0");
        let good = state.contains("rdb_last_bgsave_status:ok") && state.contains("aof_enabled:1");
        Ok((done && good).then_some(()))
    })
    .unwrap();

    // From its node, as a program beside it would.
    let mut stream = TcpStream::connect((redis.observed.address.unwrap(), 6379)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET greeting\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let answer = [lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()];
    assert_eq!(answer, ["$5", "hello"]);
    ends_with(platform, &redis, "Redis is now ready to exit");
}

#[test]
fn postgres_makes_its_cluster_and_holds_pgbench() {
    let platform = platform_with("postgres");
    check_postgres(&platform);
    platform.finish();
}

fn check_postgres(platform: &Platform) {
    let postgres = instance(platform, "postgres");
    let run = |command: &[&str]| exec(platform, &postgres, &["--user", "postgres"], command);
    assert_eq!(users(platform, &postgres, "postgres"), [user(platform, &postgres, "postgres")]);

    run(&["pgbench", "--initialize", "--quiet", "--scale", "5", "app"]);
    let options = ["--client", "8", "--jobs", "2", "--transactions", "100", "app"];
    let report = run(&[&["pgbench"], &options[..]].concat());
    assert!(report.contains("transactions actually processed: 800/800"), "{report}");
    assert!(report.contains("number of failed transactions: 0"), "{report}");

    // Workers share memory through /dev/shm.
    let parallel = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; \
                    SET min_parallel_table_scan_size = 0; SET debug_parallel_query = on; ";
    let parallel = parallel.replace("debug_parallel_query", "force_parallel_mode");
    let query = format!("{parallel} SELECT count(*), sum(abalance) = 0 FROM pgbench_accounts");
    let row = run(&["psql", "--no-psqlrc", "--tuples-only", "--quiet", "--command", &query, "app"]);
    assert!(row.trim_start().starts_with("500000"), "{row}");

    let address = postgres.observed.address.unwrap();
    let url = |password: &str| format!("postgresql://postgres:{password}@{address}/app");
    let psql = |url: &str| {
        let id = postgres.id().as_str();
        platform.run(&["exec", id, "--", "psql", url, "--tuples-only", "--command", "SELECT 6 * 7"])
    };
    assert_eq!(psql(&url("secret")).ok().trim(), "42");
    let refused = psql(&url("wrong"));
    assert!(refused.stderr.contains("password authentication failed"), "{refused}");
    ends_with(platform, &postgres, "database system is shut down");
}

#[test]
fn a_python_app_answers_takes_bodies_and_streams() {
    let platform = platform_with("python");
    check_python(&platform);
    platform.finish();
}

fn check_python(platform: &Platform) {
    let python = instance(platform, "python");
    apache_bench(platform, "python", "/", &[]);
    let page = platform.get(&host("python"), "/").unwrap();
    let page: Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(page["instance"], python.id().as_str());
    assert_eq!((page["greeting"].as_str(), page["user"].as_u64()), (Some("hello"), Some(1000)));

    let body: Vec<u8> = (0..16_u32 << 20).map(|number| (number % 251) as u8).collect();
    let host = host("python");
    let request = Request { method: "POST", body: Some(&body), ..Request::get(&host, "/digest") };
    let digest = request.send(platform.ingress_address()).unwrap().text();
    let expected: String = Sha256::digest(&body).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, expected);

    // The second line is sent once the first has come, so that nothing on the way may keep it.
    let mut stream = TcpStream::connect(platform.ingress_address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!("GET /stream HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.any(|line| line.unwrap() == "first"));
    assert_eq!(platform.get(&host, "/go").unwrap().text(), "gone");
    assert!(lines.any(|line| line.unwrap() == "second"));
}

#[test]
fn a_grpc_server_is_called_through_the_ingress() {
    let platform = platform_with("grpc");
    let server = instance(&platform, "grpc");
    // Debian's Python: its packages are not seen by another one that may be on the path.
    let mut client = Command::new("/usr/bin/python3");
    client.arg(programs::recipe("grpc").join("client.py"));
    let address = platform.ingress_address().to_string();
    let output = client.args([&address, &host("grpc")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "is the package python3-grpcio installed? {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), server.id().as_str());
    platform.finish();
}

#[test]
fn a_node_server_answers_and_speaks_websocket() {
    let platform = platform_with("node");
    check_node(&platform);
    platform.finish();
}

fn check_node(platform: &Platform) {
    let node = instance(platform, "node");
    apache_bench(platform, "node", "/", &["-k"]);
    let page = platform.get(&host("node"), "/a?b=c").unwrap();
    let page: Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((page["path"].as_str(), page["user"].as_u64()), (Some("/a?b=c"), Some(1000)));

    let mut socket =
        WebSocket::connect(platform.ingress_address(), &host("node"), "/echo").unwrap();
    let binary: Vec<u8> = (0..1 << 20).map(|number: u32| (number % 253) as u8).collect();
    for _ in 0..3 {
        socket.send_text("hello").unwrap();
        socket.send_binary(&binary).unwrap();
        assert_eq!(socket.receive().unwrap(), Message::Text("hello".to_owned()));
        assert_eq!(socket.receive().unwrap(), Message::Binary(binary.clone()));
    }
    ends_with(platform, &node, "told to stop");
}

#[test]
fn chromium_renders_and_is_driven_through_the_ingress() {
    let platform = platform_with("chromium");
    check_chromium(&platform);
    platform.finish();
}

fn check_chromium(platform: &Platform) {
    let chromium = instance(platform, "chromium");
    let once = |option: &str| {
        let shell = [
            "chromium-headless-shell",
            "--no-sandbox",
            "--disable-gpu",
            "--user-data-dir=/tmp/once",
        ];
        exec(platform, &chromium, &[], &[&shell[..], &[option, "file:///srv/page.html"]].concat())
    };
    let dom = once("--dump-dom");
    assert!(dom.contains("the sum is 6"), "{dom}");
    once("--screenshot=/tmp/page.png");
    let head = exec(platform, &chromium, &[], &["sh", "-c", "head -c 4 /tmp/page.png | tail -c 3"]);
    assert_eq!(head, "PNG");

    // Its own protocol, as a driver on another machine would speak it.
    let version = platform.get(&host("chromium"), "/json/version").unwrap();
    let version: Value = serde_json::from_slice(&version.body).unwrap();
    let url = version["webSocketDebuggerUrl"].as_str().unwrap();
    let path = &url[url.find("/devtools").unwrap()..];
    let mut tools =
        WebSocket::connect(platform.ingress_address(), &host("chromium"), path).unwrap();
    let create = json!({"id": 1, "method": "Target.createTarget", "params": {"url": "file:///srv/page.html"}});
    tools.send_text(&create.to_string()).unwrap();
    let Message::Text(answer) = tools.receive().unwrap() else { panic!("not text") };
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let target = answer["result"]["targetId"].as_str().unwrap_or_else(|| panic!("{answer}"));
    eventually("the page has run its script", || {
        let pages = platform.get(&host("chromium"), "/json/list")?;
        let pages: Vec<Value> = serde_json::from_slice(&pages.body)?;
        let page = pages.iter().find(|page| page["id"] == target);
        Ok(page.filter(|page| page["title"] == "after").map(drop))
    })
    .unwrap();
}

/// What is tried on a platform that has the program.
type Check = fn(&Platform);

/// Some of them once more, in containers that another runtime makes.
fn programs_run_in(runtime: &str, checks: &[(&str, Check)]) {
    let platform = Platform::start().unwrap();
    for (program, check) in checks {
        // runsc has no use for one, and runc needs more rights for it than an agent may have.
        let lines = format!("runtime = \"{runtime}\"\nuser_namespace = false\n");
        deploy(&platform, program, &lines);
        check(&platform);
        platform.remove(program).unwrap();
    }
    platform.finish();
}

#[test]
fn programs_run_in_runc() {
    let checks: [(_, Check); 3] =
        [("nginx", check_nginx), ("redis", check_redis), ("postgres", check_postgres)];
    programs_run_in("runc", &checks);
}

#[test]
fn programs_run_in_runsc() {
    let checks: [(_, Check); 3] =
        [("redis", check_redis), ("python", check_python), ("node", check_node)];
    programs_run_in("runsc", &checks);
}
