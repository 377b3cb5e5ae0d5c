use super::*;

fn defaults() -> Settings {
    Settings::defaults(constant("n1"))
}

fn problems(file: &str, flags: &[(&'static str, &str)]) -> Vec<String> {
    let flags: Vec<_> = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
    let problems = Settings::load(defaults(), Some(file), &flags).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_dump_reads_back_as_the_same_settings() {
    let mut settings = defaults();
    for round in 0..2 {
        let dump = settings.dump();
        let back = Settings::load(defaults(), Some(&dump), &[]).unwrap();
        assert_eq!(back, settings, "round {round}:\n{dump}");
        settings = Settings {
            data_dir: "/srv/with \"quotes\"".into(),
            instance_pool: constant("10.77.0.0/16"),
            coordinates: Some(constant("-33.9, 151.2")),
            traits: Traits {
                country: Some(constant("AU")),
                labels: [constant("tier=edge"), constant("disk=nvme")].into(),
            },
            rebalance_after: constant("90s"),
            keep_releases: constant("5"),
            registry_objects: crate::roles::registry::ObjectSettings {
                storage: Some(constant("s3://images/ours")),
                endpoint: Some(constant("https://s3.example.com:9000")),
                region: Some(constant("auto")),
                credentials: None,
            },
            upstreams: crate::roles::registry::UpstreamSettings {
                upstreams: vec![
                    constant("docker.io=https://mirror.example.com"),
                    constant("docker.io=https://registry-1.docker.io"),
                ],
                ..Default::default()
            },
            cpu_overcommit: 1.5,
            image_disk: constant("60-70"),
            image_rate: constant("50MiB"),
            prewarm_rate: constant("100000B"),
            image_mirror: constant("51200MiB"),
            gpus: vec![constant("h100:80GiB:4"), constant("t4:16000000001:1")],
            cgroup_parent: Some("/a/b".to_owned()),
            programs: RuntimePrograms { runsc: Some("/opt/runsc".into()), ..Default::default() },
            stop_instances: true,
            log: "warn,longshore_node=debug".to_owned(),
            ingress_listen: constant("[::]:80"),
            metrics_listen: None,
            registry: RegistrySetting::Joined,
            locations_listen: Some(constant("192.0.2.7:4604")),
            log_format: crate::logging::LogFormat::Json,
            otlp_endpoint: Some("http://127.0.0.1:4318".to_owned()),
            ..settings
        };
    }
}

#[test]
fn every_key_is_documented_with_its_default() {
    for key in KEYS {
        assert!(key.help.contains("Default"), "{}", key.name);
        assert!(key.help.lines().all(|line| line.len() <= 96), "{}", key.name);
    }
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file =
        "api_listen = \"127.0.0.1:1\"\nregistry_listen = \"127.0.0.1:2\"\ncpu_overcommit = 2";
    let flags = [("api_listen", "[::1]:0".to_owned()), ("stop_instances", "true".to_owned())];
    let settings = Settings::load(defaults(), Some(file), &flags).unwrap();
    assert_eq!(settings.api_listen, constant("[::1]:0"));
    assert_eq!(settings.registry_listen, constant("127.0.0.1:2"));
    assert_eq!(settings.ingress_listen, constant("127.0.0.1:8080"));
    assert!(settings.stop_instances);
    assert_eq!(settings.cpu_overcommit, 2.0);
}

#[test]
fn all_problems_are_told_at_once() {
    let file = "data_dri = \"/x\"\nregistry_listen = \"0.0.0.0:1\"\ncpu_overcommit = 0.5\n\
                whatever = 1\notlp_endpoint = \"127.0.0.1:4318\"\nlog_format = \"xml\"\nmetrics_listen = \"127.0.0.1:65532\"\nlocation = \"Here\"\ncountry = \"Holland\"\nlabel = [\"nvme\"]\ngpu = [\"h100:80\"]\ncgroup_parent = \"a/../b\"\n\
                registry_storage = \"images\"\nregistry_s3_endpoint = \"s3.example.com\"\nupstream = [\"docker.io\"]\nimage_disk = \"85-75\"\nprewarm_rate = \"1KiB\"\nimage_mirror = \"95%\"\nimage_rate = \"fast\"\nkeep_releases = 0";
    let found = problems(file, &[("api_listen", "192.0.2.1:4600"), ("log", "loud=what")]);
    for part in [
        "data_dri = \"/x\": unknown key; did you mean \"data_dir\"?",
        "registry_listen = \"0.0.0.0:1\": a loopback address",
        "until TLS is configured",
        "otlp_endpoint = \"127.0.0.1:4318\": a URL",
        "log_format = \"xml\": text or json",
        "metrics_listen = \"127.0.0.1:65532\": an IP address and a port up to 65531",
        "cpu_overcommit = 0.5: a number from 1 to 100",
        "whatever = 1: unknown key; known keys: data_dir, run_dir",
        "location = \"Here\": 1 to 40",
        "country = \"Holland\": a two-letter country code",
        "label = [\"nvme\"]: key=value",
        "image_disk = \"85-75\": LOW-HIGH, two whole percentages",
        "prewarm_rate = \"1KiB\": unlimited, or a size of at least 64KiB",
        "image_mirror = \"95%\": 0 for none, a size such as 50GiB, or a percentage of the disk",
        "image_rate = \"fast\": unlimited, or a size of at least 64KiB",
        "keep_releases = 0: a whole number from 1 to 1000",
        "gpu = [\"h100:80\"]: MODEL:MEMORY or MODEL:MEMORY:COUNT",
        "cgroup_parent = \"a/../b\": a path",
        "registry_storage = \"images\": s3://BUCKET or s3://BUCKET/PREFIX",
        "registry_s3_endpoint = \"s3.example.com\": https://HOST or https://HOST:PORT",
        "upstream = [\"docker.io\"]: NAME=https://HOST",
        "--api-listen = \"192.0.2.1:4600\": a loopback address",
        "--log = \"loud=what\": error, warn",
    ] {
        assert!(found.iter().any(|line| line.contains(part)), "{part:?} missing in {found:#?}");
    }
    assert_eq!(found.len(), 22, "{found:#?}");
}

#[test]
fn what_is_said_of_an_object_store_is_looked_at_with_all_else() {
    let found = problems("registry_s3_credentials = \"/none\"", &[("registry_s3_region", "auto")]);
    assert_eq!(
        found,
        [
            "--registry-s3-region = auto: nothing without registry_storage",
            "registry_s3_credentials = /none: nothing without registry_storage"
        ]
    );
}

#[test]
fn a_registry_joins_where_locations_do() {
    let joined = "registry = \"joined\"\n";
    assert_eq!(
        problems(joined, &[]),
        ["registry = \"joined\": own, unless locations_listen says where it joins"]
    );
    let told = problems("", &[("registry", "joined")]);
    assert!(told[0].starts_with("--registry = "), "{told:?}");
    assert_eq!(problems("registry = \"none\"", &[]), ["registry = \"none\": own or joined"]);
    let there =
        format!("{joined}locations_listen = \"192.0.2.7:4604\"\nregistry_listen = \"0.0.0.0:1\"");
    let settings = Settings::load(defaults(), Some(&there), &[]).unwrap();
    assert_eq!(settings.to_users(), [settings.api_listen], "nothing of its own listens");
}

#[test]
fn broken_toml_is_told_with_its_line() {
    let found = problems("data_dir = ", &[]);
    assert!(found[0].contains("line 1"), "{found:?}");
}

#[test]
fn any_host_name_gives_a_node_name() {
    for (host, node) in [
        ("web1", "web1"),
        ("Web1.example.com", "web1"),
        ("0a1b2c3d", "node-0a1b2c3d"),
        ("", "node"),
        ("under_score", "node"),
    ] {
        assert_eq!(node_name(host).as_str(), node, "{host}");
    }
}

#[test]
fn the_certificates_for_an_etcd_are_looked_at_with_all_else() {
    let file =
        "store = \"https://a:1\"\nstore_cert = \"/none/cert\"\nstore_key = \"relative\"\nlog = 7";
    let told = problems(file, &[]).join("\n");
    for part in [
        "store_ca = (none): a file with the certificates of those who vouch",
        "store_cert = /none/cert: a file that can be read: No such file",
        "store_key = \"relative\": the absolute path of a file, or empty",
        "log = 7: ",
    ] {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    let needless = problems("store_ca = \"/none/ca\"", &[]);
    assert_eq!(needless, ["store_ca = /none/ca: nothing where the store is no etcd at https://"]);
}
