//! Wrong input at each verb: the error names the field, the value and what is allowed, the exit
//! code tells the kind, and nothing has changed.

use std::fs;

use longshore_e2e::Platform;
use longshore_e2e::platform::binary;
use serde_json::Value;

use crate::scene::{web, with_web};

/// A command line, its exit code, and what its error names.
type Row = (&'static str, i32, &'static [&'static str]);

const OTHER: i32 = 1;
const USAGE: i32 = 2;
const INVALID: i32 = 3;
const NOT_FOUND: i32 = 4;
const DENIED: i32 = 5;
const UNAVAILABLE: i32 = 6;

const ROWS: &[Row] = &[
    ("", USAGE, &["Usage"]),
    ("deploi", USAGE, &["deploi", "deploy"]),
    ("deploy --file missing.toml", INVALID, &["missing.toml"]),
    ("deploy --file broken.toml", INVALID, &["broken.toml", "line 2"]),
    (
        "deploy --file wrong.toml",
        INVALID,
        &[
            "imagee",
            "did you mean \"image\"",
            "count = -1",
            "resources.memory = \"12 apples\"",
            "KiB",
        ],
    ),
    ("deploy --file absent.toml", INVALID, &["default/absent:1"]),
    ("plan --file wrong.toml", INVALID, &["imagee", "count = -1"]),
    ("plan --file absent.toml", INVALID, &["default/absent:1"]),
    ("rollback absent", NOT_FOUND, &["absent"]),
    ("rollback web first", USAGE, &["first", "r3"]),
    ("rollback web r9", INVALID, &["release = r9", "r1"]),
    ("deploy --file web.toml --timeout soon", USAGE, &["soon", "timeout"]),
    ("deploy --file web.toml --project Wrong", USAGE, &["Wrong", "project"]),
    ("scale web", USAGE, &["web"]),
    ("scale web=many", USAGE, &["many"]),
    ("scale absent=1", NOT_FOUND, &["absent"]),
    ("ps Wrong", USAGE, &["Wrong"]),
    ("ps absent", NOT_FOUND, &["absent"]),
    ("releases absent", NOT_FOUND, &["absent"]),
    ("rm absent", NOT_FOUND, &["absent"]),
    ("stop absent", NOT_FOUND, &["absent"]),
    ("stop Wrong!", INVALID, &["Wrong!"]),
    ("logs absent", NOT_FOUND, &["absent"]),
    ("logs web --tail few", USAGE, &["few", "--tail"]),
    ("logs web --since soon", USAGE, &["soon", "--since"]),
    ("promote web", OTHER, &["no canary"]),
    ("promote absent", NOT_FOUND, &["absent"]),
    ("logs wbe", NOT_FOUND, &["wbe", "did you mean web?"]),
    ("scale wbe=1", NOT_FOUND, &["wbe", "did you mean web?"]),
    (
        "deploy --file secret.toml",
        INVALID,
        &["secrets.A = \"absent\"", "longshore secret set absent"],
    ),
    ("deploy --file canary.toml", INVALID, &["max = 2: at least 3"]),
    ("events --limit 0", INVALID, &["limit", "1 to 10000"]),
    ("secret rm absent", NOT_FOUND, &["absent"]),
    ("secret set Bad", USAGE, &["Bad"]),
    ("token create x --role owner", USAGE, &["owner", "read, deploy or admin"]),
    ("exec web-00000000 -- true", NOT_FOUND, &["web-00000000"]),
    ("exec Wrong! -- true", INVALID, &["Wrong!"]),
    ("exec absent -- true", NOT_FOUND, &["absent"]),
    ("explain absent", NOT_FOUND, &["absent"]),
    ("replay absent.jsonl", NOT_FOUND, &["absent.jsonl"]),
    ("replay web.toml", INVALID, &["line 1 of web.toml is no decision of this version"]),
    ("image rm default/absent:1", NOT_FOUND, &["default/absent"]),
    ("image pull default/absent:1", USAGE, &["--into"]),
    ("image pull default/absent:1 --into some-images", NOT_FOUND, &["default/absent"]),
    (
        "image pull default/web:1 --into data/node/images",
        UNAVAILABLE,
        &["--into", "open elsewhere"],
    ),
    ("image inspect default/absent:1", NOT_FOUND, &["default/absent"]),
    ("image prewarm web --pin --rm", USAGE, &["--pin", "--rm"]),
    ("image prewarm absent --pin", NOT_FOUND, &["absent"]),
    ("image pack /no/such/program --push default/x:1", INVALID, &["/no/such/program"]),
    ("image pack web.toml --push default/x:1", INVALID, &["web.toml"]),
    ("token create Wrong --admin", USAGE, &["Wrong"]),
    ("token create none", USAGE, &["rights"]),
    ("token create bad --pull ../x", USAGE, &["../x"]),
    ("token rm absent", NOT_FOUND, &["absent"]),
    ("apps --token lsh_wrong", DENIED, &["token"]),
    ("apps --api http://127.0.0.1:1", UNAVAILABLE, &["127.0.0.1:1"]),
    ("apps --api https://:4600", INVALID, &["https://:4600"]),
    ("apps --everything", USAGE, &["--everything"]),
    ("doctor --run-dir", USAGE, &["--run-dir"]),
    ("demo --twice", USAGE, &["--twice"]),
    ("demo --locations 1", USAGE, &["--locations", "2..=8"]),
    ("world --user-at Lodnon", USAGE, &["--user-at", "did you mean lon?", "known are ams"]),
    ("world --locations 99", USAGE, &["--locations", "99", "1..="]),
    ("world --places ams,sin,Amsterdam", USAGE, &["--places", "ams twice"]),
    ("world --data-dir .", INVALID, &["neither empty nor the directory of a world"]),
    ("world slow sin --delay soon", USAGE, &["--delay", "soon"]),
    ("world cut", USAGE, &["<A>"]),
    ("world status --data-dir nowhere", UNAVAILABLE, &["nowhere/control.sock", "longshore world"]),
    ("top absent", NOT_FOUND, &["absent"]),
    ("locations --api no//where", INVALID, &["no//where", "http://127.0.0.1:4600"]),
    ("nodes --token-file /missing", DENIED, &["/missing"]),
    ("locations rm absent", NOT_FOUND, &["absent"]),
    ("locations rm absent --dry-run", NOT_FOUND, &["absent"]),
    ("nodes rm absent --dry-run", NOT_FOUND, &["absent"]),
    ("join-token --country Holland", USAGE, &["Holland", "ISO 3166"]),
    ("join-token --country NL", INVALID, &["country", "role location"]),
    ("join-token --location absent", NOT_FOUND, &["absent"]),
    ("join-token --role king", USAGE, &["node", "location"]),
    ("nodes rm absent", NOT_FOUND, &["absent"]),
    ("cordon", USAGE, &["<NODE>"]),
    ("cordon Wrong!", USAGE, &["Wrong!"]),
    ("cordon absent", NOT_FOUND, &["absent"]),
    ("cordon --location absent", NOT_FOUND, &["absent"]),
    ("uncordon absent", NOT_FOUND, &["absent"]),
    ("drain absent --dry-run", NOT_FOUND, &["absent"]),
    ("drain absent --timeout soon", USAGE, &["soon", "timeout"]),
    ("events --project Wrong", USAGE, &["Wrong", "project name"]),
    ("exec web -i --detach-keys ctrl-! -- true", USAGE, &["ctrl-!", "ctrl-a to ctrl-z"]),
    ("exec -it web -- true", USAGE, &["-t needs a terminal"]),
    ("run -it default/web:1", USAGE, &["-t needs a terminal"]),
    ("run --name Wrong default/web:1", USAGE, &["Wrong", "--name"]),
    ("run --env A default/web:1", INVALID, &["\"A\"", "NAME=VALUE"]),
    ("run --secret A default/web:1", USAGE, &["VARIABLE=SECRET"]),
    ("run --memory 1 default/web:1", INVALID, &["resources.memory"]),
    ("run default/absent:1", INVALID, &["default/absent"]),
    ("attach absent", NOT_FOUND, &["absent"]),
    ("attach -it web", USAGE, &["-t needs a terminal"]),
    ("port-forward web 99999", USAGE, &["99999", "1 to 65535"]),
    ("port-forward web 80:", USAGE, &["valid port"]),
    ("port-forward absent :80", NOT_FOUND, &["absent"]),
    ("cp web.toml elsewhere", USAGE, &["neither side is in an instance"]),
    ("cp web:/a web:/b", USAGE, &["only one side"]),
    ("cp web: .", USAGE, &["no path after the colon"]),
    ("cp absent:/etc .", NOT_FOUND, &["absent"]),
    ("cp Wrong!:/etc .", INVALID, &["Wrong!"]),
    ("scale web=2 --wait --timeout soon", USAGE, &["soon", "timeout"]),
    ("secret set db --from-file missing", INVALID, &["missing"]),
    ("completions tcsh", USAGE, &["tcsh", "bash"]),
    ("man", USAGE, &["<DIR>"]),
    ("schema nope", INVALID, &["nope", "image inspect"]),
    ("global --api-rate 0", USAGE, &["--api-rate", "zero"]),
    ("location run --name Wrong", USAGE, &["Wrong", "location name"]),
    ("location join lsj_nonsense", USAGE, &["join token"]),
    ("node agent --agent", USAGE, &["--agent"]),
    ("node join nonsense", USAGE, &["join token", "lsj_"]),
    (
        "node start --gpu h100:80",
        USAGE,
        &["--gpu", "h100:80", "MODEL:MEMORY:COUNT", "at least 1MiB"],
    ),
    ("node join", USAGE, &["<TOKEN>"]),
    ("store backup", USAGE, &["<FILE>"]),
    ("store restore missing --data-dir data", INVALID, &["missing"]),
    ("store migrate --from http://nowhere --to data", USAGE, &["nowhere"]),
    ("registry run --listen nonsense", USAGE, &["nonsense", "unix:/absolute/path"]),
    ("ingress --listen nonsense", USAGE, &["nonsense", "unix:/absolute/path"]),
    ("up --api-rate 0", INVALID, &["--api-rate", "1 to 1000000"]),
    ("up --rebalance-after 0s", INVALID, &["--rebalance-after", "at least 1s"]),
    ("up --store etcd:2379", INVALID, &["--store", "http[s]://HOST:PORT"]),
    ("global --store http://a", USAGE, &["--store", "embedded, or the members"]),
    ("up --coordinates 91,0", INVALID, &["91,0", "latitude"]),
    ("up --metrics-listen nonsense", INVALID, &["nonsense", "an IP address and a port"]),
    ("up --otlp-endpoint nonsense", INVALID, &["nonsense", "https://"]),
    ("up --api-listen 192.0.2.1:1", INVALID, &["192.0.2.1:1", "loopback"]),
    ("up --config wrong-up.toml", INVALID, &["data_dri", "data_dir", "cpu_overcommit = 0.5"]),
];

fn write_files(platform: &Platform) {
    for (name, text) in [
        ("broken.toml", "app = \"web\"\nimage = \n"),
        (
            "wrong.toml",
            "app = \"web\"\nimagee = \"x\"\ncount = -1\n[resources]\nmemory = \"12 apples\"\n",
        ),
        ("absent.toml", "app = \"web\"\nimage = \"default/absent:1\"\n"),
        ("secret.toml", "app = \"web\"\nimage = \"default/web:1\"\n[secrets]\nA = \"absent\"\n"),
        (
            "canary.toml",
            "app = \"web\"\nimage = \"default/web:1\"\ncount = 2\nmax = 2\n[rollout]\ncanary = 1\n",
        ),
        ("web.toml", "app = \"web\"\nimage = \"default/web:1\"\ncount = 3\n"),
        ("wrong-up.toml", "data_dri = \"/x\"\ncpu_overcommit = 0.5\n"),
    ] {
        fs::write(platform.dir().join(name), text).unwrap();
    }
}

/// Everything that a user can see, without what changes by itself.
fn everything(platform: &Platform) -> Vec<Value> {
    ["apps", "apps/web/releases", "instances"]
        .map(|path| platform.call("GET", &format!("/v1/projects/default/{path}"), None).unwrap())
        .into_iter()
        .chain([platform.call("GET", "/v1/tokens", None).unwrap()])
        .collect()
}

#[test]
fn wrong_input_is_explained_and_changes_nothing() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    write_files(&platform);
    let before = everything(&platform);
    for (line, code, texts) in ROWS {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        platform.run(&arguments).fails(*code, texts);
    }
    assert_eq!(everything(&platform), before);
    platform.finish();
}

#[test]
fn no_verb_is_without_wrong_input() {
    let help = std::process::Command::new(binary().unwrap()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // A line that goes on with the words of the one before is indented further.
    let verb = |line: &str| Some(line.strip_prefix("  ")?.split_once(' ')?.0.to_owned());
    let verbs: Vec<_> = listed.lines().filter_map(verb).filter(|verb| !verb.is_empty()).collect();
    assert!(verbs.len() > 25, "{verbs:?}");
    for verb in verbs {
        let has_row = ROWS.iter().any(|(line, ..)| line.split(' ').next() == Some(&verb));
        assert!(has_row, "{verb} has no row");
    }
}

#[test]
fn the_api_explains_wrong_requests() {
    let platform = with_web();
    let manifest = serde_json::json!({"manifest": {"app": "web", "image": true, "cuont": 1}});
    let path = "/v1/projects/default/apps/web";
    for (method, path, body, status, texts) in [
        ("PUT", path, Some(manifest), 422, &["invalid-request", "image", "did you mean"][..]),
        ("PUT", path, Some(serde_json::json!({})), 422, &["manifest"]),
        ("GET", path, None, 404, &["not-found", "web"]),
        ("GET", "/v1/projects/Wrong/apps", None, 422, &["Wrong"]),
        ("GET", "/v1/nothing", None, 404, &["not-found", "\"type\":\"/v1/errors/not-found\""]),
        ("GET", "/v1/errors/not-found", None, 200, &["# not-found", "HTTP status 404"]),
        ("GET", "/v1/errors/nothing", None, 404, &["not-found"]),
    ] {
        let response = platform.call_raw(method, path, body).unwrap();
        let text = response.text();
        assert_eq!(response.status, status, "{method} {path}: {text}");
        for part in texts {
            assert!(text.contains(part), "{method} {path}: no {part} in {text}");
        }
    }
    platform.finish();
}
