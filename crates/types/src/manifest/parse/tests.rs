use serde_json::json;

use super::*;

fn problems(document: Value) -> Vec<String> {
    Manifest::from_document(&document).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_smallest_manifest_gets_the_defaults() {
    let manifest =
        Manifest::from_document(&json!({"app": "web", "image": "default/web:1"})).unwrap();
    assert_eq!((manifest.count, manifest.max_for(1), manifest.project.as_str()), (1, 3, "default"));
    assert_eq!(manifest.resources, Resources::default());
    assert_eq!((manifest.health, manifest.restart), (None, RestartPolicy::Always));
    assert_eq!(manifest.runtime, RuntimeName::Embedded);
    assert_eq!(manifest.ingress, IngressRules::default());
    assert!(manifest.user_namespace);
    assert_eq!(manifest.priority, Priority::default());
}

#[test]
fn a_priority_is_on_the_scale_and_what_runs_once_never_yields() {
    let read = |more: Value| {
        let mut document = json!({"app": "web", "image": "web", "release": {"command": ["true"]}});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Manifest::from_document(&document)
    };
    let batch = read(json!({"priority": 20})).unwrap();
    assert_eq!((u8::from(batch.priority), batch.yields()), (20, Priority::new(20)));
    let command = batch.of_release_command().unwrap();
    assert_eq!((u8::from(command.priority), command.yields()), (20, None));
    assert_eq!(read(json!({"priority": 90, "restart": "never"})).unwrap().yields(), None);
    for wrong in [json!(0), json!(101), json!("high"), json!(1.5)] {
        let told = &read(json!({"priority": wrong})).unwrap_err()[0];
        assert_eq!(told.to_string(), format!("priority = {wrong}: a whole number from 1 to 100"));
    }
}

#[test]
fn a_port_brings_a_tcp_check_and_a_path_an_http_check() {
    let base = json!({"app": "web", "image": "web", "port": 80});
    let manifest = Manifest::from_document(&base).unwrap();
    assert_eq!(manifest.health, Some(Health::tcp(Port::new(80).unwrap())));
    let mut with_path = base;
    with_path["health"] = json!({"path": "/up"});
    let health = Manifest::from_document(&with_path).unwrap().health.unwrap();
    assert_eq!(health.kind, HealthKind::Http { path: "/up".to_owned() });
}

#[test]
fn every_problem_is_reported_at_once_with_field_value_and_what_is_allowed() {
    let found = problems(json!({
        "app": "Web", "imagee": "x", "count": -1, "port": 0, "hosts": ["ok.example", "a b"],
        "resources": {
            "memory": "12 potatoes", "cpu": "fast", "pid": 3, "disk": "1MiB", "open_files": 3,
        },
        "process": {"stop_signal": "SIGNOPE", "workdir": "relative"},
        "ingress": {"protocol": "http3", "slow_start": "2h", "outlier_ejection": 1, "retries": 2},
        "health": {"kind": "grpc"}, "egress": {"allow": ["10.0.0.1/8"]},
        "rollout": {"max_surge": "a few", "max_unavailable": "120%", "deadline": "10ms", "revert": 1, "canary": -1, "waves": "no"},
        "release": {"timeout": "1ms"},
        "restart": "sometimes", "runtime": "docker", "user_namespace": "no", "env": {"A=B": "x"},
    }));
    for part in [
        "app = \"Web\": use 1 to 40",
        "imagee = \"x\": unknown key; did you mean \"image\"?",
        "image: is required",
        "count = -1: a whole number from 0 to 10000",
        "port = 0: a whole number from 1 to 65535",
        "hosts[1] = \"a b\"",
        "resources.memory = \"12 potatoes\"",
        "resources.cpu = \"fast\"",
        "resources.pid = 3: unknown key; did you mean \"pids\"?",
        "resources.disk = \"1 MiB\": from 4MiB to 8TiB",
        "resources.open_files = 3: a whole number from 16 to 1048576",
        "process.stop_signal = \"SIGNOPE\"",
        "process.workdir = \"relative\": an absolute path",
        "ingress.protocol = \"http3\": one of \"http1\", \"h2c\"",
        "ingress.slow_start = \"2h\": at most 1h",
        "ingress.outlier_ejection = 1: true or false",
        "ingress.retries = 2: unknown key; known keys: protocol, slow_start, outlier_ejection",
        "health.port: a health check needs a port",
        "egress.allow[0] = \"10.0.0.1/8\"",
        "rollout.max_surge = \"a few\": a whole number from 0 to 10000, or from 0% to 100%",
        "rollout.max_unavailable = \"120%\": a whole number",
        "rollout.deadline = \"10ms\": at least 1s",
        "rollout.revert = 1: true or false",
        "rollout.canary = -1: a whole number from 0 to 10000, or from 0% to 100%",
        "rollout.waves = \"no\": true or false",
        "release.timeout = \"1ms\": at least 1s",
        "release.command = []: a list of at least the program",
        "restart = \"sometimes\": one of \"always\", \"on-failure\", \"never\"",
        "runtime = \"docker\": one of \"embedded\", \"runc\", \"crun\", \"runsc\"",
        "user_namespace = \"no\": true or false",
        "env.A=B = \"x\"",
    ] {
        assert!(found.iter().any(|line| line.contains(part)), "missing {part:?} in {found:#?}");
    }
    assert_eq!(found.len(), 31, "{found:#?}");
}

#[test]
fn a_rollout_is_counts_or_parts_of_which_one_is_more_than_nothing() {
    let rollout = |rollout| {
        let document = json!({"app": "web", "image": "web", "rollout": rollout});
        Manifest::from_document(&document).map(|manifest| manifest.rollout)
    };
    assert_eq!(rollout(json!({})).unwrap(), Rollout::default());
    let set = rollout(json!({"max_surge": 0, "max_unavailable": "25%"})).unwrap();
    assert_eq!((set.surge(8), set.unavailable(8)), (0, 2));
    let refused = rollout(json!({"max_surge": "0%"})).unwrap_err();
    assert_eq!(
        refused[0].to_string(),
        "rollout.max_surge = \"0%\": more than 0 unless max_unavailable is"
    );
    let refused = rollout(json!({"canary_wait": "5m"})).unwrap_err();
    assert_eq!(
        refused[0].to_string(),
        "rollout.canary_wait = \"5m\": nothing, unless canary is more than 0"
    );
    let document = json!({
        "app": "web", "image": "web", "count": 4, "max": 4, "rollout": {"canary": "25%"}
    });
    assert_eq!(
        Manifest::from_document(&document).unwrap_err()[0].to_string(),
        "max = 4: at least 5, or canaries have no room beside count, 4"
    );
    let document = json!({
        "app": "web", "image": "web", "count": 4, "max": 4, "release": {"command": ["x"]}
    });
    assert_eq!(
        Manifest::from_document(&document).unwrap_err()[0].to_string(),
        "max = 4: at least 5, or the release command has no room beside count, 4"
    );
}

#[test]
fn limits_of_disk_and_open_files_have_bounds_and_defaults() {
    let resources = |resources| {
        let document = json!({"app": "web", "image": "web", "resources": resources});
        Manifest::from_document(&document).map(|manifest| manifest.resources)
    };
    let defaults = resources(json!({})).unwrap();
    assert_eq!(
        (defaults.disk, defaults.open_file_limits()),
        (ByteCount::gib(1), (65_536, 524_288))
    );
    let set = resources(json!({"disk": "4MiB", "open_files": 256})).unwrap();
    assert_eq!((set.disk, set.open_file_limits()), (ByteCount::mib(4), (256, 256)));
    assert_eq!(set.capacity().disk, ByteCount::mib(44), "its log counts too");
    assert!(resources(json!({"disk": "8TiB"})).is_ok());
    assert!(resources(json!({"disk": "9TiB"})).is_err());
    assert!(resources(json!({"disk": "4194303"})).is_err());
}

#[test]
fn a_manifest_that_was_stored_without_the_newer_limits_gets_the_defaults() {
    let old = json!({"cpu": 500, "memory": 1024, "pids": 5});
    let read: Resources = serde_json::from_value(old).unwrap();
    assert_eq!((read.disk, read.open_files), (ByteCount::gib(1), None));
}

#[test]
fn only_amounts_may_be_bare_numbers() {
    let found = problems(json!({"app": "web", "image": 7, "resources": {"memory": 8_000_000}}));
    assert_eq!(found, ["image = 7: a text"]);
}

#[test]
fn a_kernel_of_its_own_needs_room_within_the_limits() {
    let with = |runtime: &str| {
        json!({"app": "web", "image": "web", "runtime": runtime,
               "resources": {"memory": "32MiB", "pids": 10}})
    };
    assert!(Manifest::from_document(&with("crun")).is_ok());
    let found = problems(with("runsc"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].ends_with("at least 64MiB with the runtime runsc"), "{found:?}");
    assert!(found[1].starts_with("resources.pids = 10: a whole number from 64"), "{found:?}");
}

#[test]
fn max_is_never_below_count() {
    let found = problems(json!({"app": "web", "image": "web", "count": 5, "max": 4}));
    assert_eq!(found, ["max = 4: at least count, 5"]);
}

#[test]
fn users_of_its_own_are_an_ability_that_is_needed_unless_it_does_without() {
    let needs = |document: Value| {
        let needed = Manifest::from_document(&document).unwrap().needed_abilities();
        needed.contains(&crate::Ability::UserNamespace)
    };
    assert!(needs(json!({"app": "web", "image": "web"})));
    assert!(!needs(json!({"app": "web", "image": "web", "user_namespace": false})));
}

#[test]
fn a_stored_manifest_reads_back() {
    let document = json!({
        "app": "web", "image": "web", "port": 80, "env": {"A": 1}, "health": {"path": "/"},
        "resources": {"cpu": 0.5, "memory": "64MiB"}, "process": {"stop_signal": "int"},
        "user_namespace": false, "ingress": {"protocol": "h2c", "slow_start": "0s"},
    });
    let manifest = Manifest::from_document(&document).unwrap();
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    assert_eq!(manifest.process.stop_signal.as_deref(), Some("SIGINT"));
    let ingress = &manifest.ingress;
    assert_eq!((ingress.protocol, ingress.slow_start), (AppProtocol::H2c, Duration::from_secs(0)));
    assert!(ingress.outlier_ejection);
}

#[test]
fn an_app_for_one_client_has_one_instance_and_nothing_for_others() {
    let document = json!({"app": "web", "image": "web", "attached": "terminal", "count": 1});
    let manifest = Manifest::from_document(&document).unwrap();
    assert_eq!(manifest.attached, Some(Attached::Terminal));
    assert_eq!((manifest.count, manifest.restart), (1, RestartPolicy::Never));
    let found = problems(json!({
        "app": "web", "image": "web", "attached": "pipes", "count": 2, "max": 3, "port": 80,
        "hosts": ["web.example"], "restart": "always", "ingress": {}, "health": {"kind": "tcp"},
        "rollout": {}, "release": {"command": ["true"]},
    }));
    assert_eq!(found.len(), 9, "{found:?}");
    assert!(found.contains(&"count = 2: 1 beside attached".to_owned()), "{found:?}");
    assert!(found.contains(&r#"restart = "always": "never" beside attached"#.to_owned()));
    let found = problems(json!({"app": "web", "image": "web", "attached": "tty"}));
    assert!(found[0].starts_with("attached = \"tty\": "), "{found:?}");
}

#[test]
fn secrets_have_a_place_and_a_name() {
    let secrets = |secrets| {
        let document =
            json!({"app": "web", "image": "web", "env": {"TAKEN": "1"}, "secrets": secrets});
        Manifest::from_document(&document).map(|manifest| manifest.secrets)
    };
    let set = secrets(json!({"DATABASE_URL": "db", "/run/secrets/key": "key"})).unwrap();
    let places: Vec<_> = set.iter().map(|(place, name)| format!("{place}={name}")).collect();
    assert_eq!(places, ["DATABASE_URL=db", "/run/secrets/key=key"]);
    for (bad, why) in [
        (json!({"a-b": "db"}), "secrets.a-b = \"db\": the name of an environment variable"),
        (json!({"A": "Db"}), "secrets.A = \"Db\": use 1 to 40"),
        (json!({"A": 1}), "secrets.A = 1: the name of a secret"),
        (json!({"TAKEN": "db"}), "secrets.TAKEN = \"db\": a name that env has not"),
        (json!({"LONGSHORE_X": "db"}), "does not begin with LONGSHORE_"),
        (json!({"/etc/hosts": "db"}), "a file that the platform does not write itself"),
        (json!({"/proc/x": "db"}), "a file outside of /proc, /sys and /dev"),
    ] {
        let problems = secrets(bad).unwrap_err();
        assert!(problems[0].to_string().contains(why), "{problems:?}");
    }
    let many: serde_json::Map<_, _> = (0..51).map(|idx| (format!("A{idx}"), json!("db"))).collect();
    assert!(secrets(many.into()).unwrap_err()[0].to_string().contains("at most 50"));
}
