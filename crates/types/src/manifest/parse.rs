//! From a document to a [`Manifest`], with every problem reported at once.

mod gpu;
mod placement;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Attached, Health, HealthKind, Manifest, ProcessOverrides, ReleaseCommand, Resources,
    RestartPolicy,
};
use crate::{
    AppProtocol, ByteCount, Duration, IngressRules, MilliCpu, ParseError, Port, Priority, Rollout,
    RuntimeName, SecretName, SecretPlace,
};
use table::{Table, problem};

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManifestProblem {
    /// The dotted path of the key, such as `resources.memory`.
    pub field: String,
    /// The value as given, in JSON; empty when the key is missing.
    pub value: String,
    /// What is allowed, as a phrase.
    pub allowed: String,
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}: {}", self.field, self.allowed),
            value => write!(f, "{} = {value}: {}", self.field, self.allowed),
        }
    }
}

/// The most instances one app may ask for; a guard against a slip of the finger.
const MAX_COUNT: u32 = 10_000;

const TOP_KEYS: &[&str] = &[
    "app",
    "project",
    "image",
    "count",
    "max",
    "replace_lost",
    "priority",
    "port",
    "hosts",
    "restart",
    "rollout",
    "release",
    "runtime",
    "user_namespace",
    "attached",
    "env",
    "secrets",
    "resources",
    "process",
    "ingress",
    "health",
    "egress",
    "placement",
];

impl Manifest {
    /// Checks a whole document and gives the manifest, or everything that is wrong with it.
    pub fn from_document(document: &Value) -> Result<Self, Vec<ManifestProblem>> {
        let mut problems = Vec::new();
        let Some(root) = document.as_object() else {
            problems.push(problem("(document)", document, "a table of keys and values"));
            return Err(problems);
        };
        let mut top = Table { prefix: "", map: Some(root), problems: &mut problems };
        top.refuse_unknown(TOP_KEYS);
        let app = top.required("app");
        let image = top.required("image");
        let project = top.text("project");
        let count = top.number("count", 0, MAX_COUNT).unwrap_or(1);
        let max = top.number("max", 1, MAX_COUNT * 3);
        let replace_lost = top.text("replace_lost").unwrap_or_default();
        let priority = priority_of(&mut top);
        let port = top.number("port", 1, 65535).and_then(port_of);
        let hosts = top.list("hosts");
        let attached = top.choice("attached", &ATTACHED_CHOICES);
        if attached.is_some() {
            refuse_beside_attached(&mut top);
        }
        let by_default = attached.map_or_else(RestartPolicy::default, |_| RestartPolicy::Never);
        let restart = top.choice("restart", &RESTART_CHOICES).unwrap_or(by_default);
        let runtime = top
            .choice("runtime", &RuntimeName::ALL.map(|name| (name.as_str(), name)))
            .unwrap_or_default();
        let user_namespace = top.flag("user_namespace").unwrap_or(true);
        let env = env_of(&mut top.table("env"));
        let secrets = secrets_of(&mut top.table("secrets"), &env);
        let resources = resources_of(&mut top.table("resources"), runtime);
        let process = process_of(&mut top.table("process"), env);
        let ingress = ingress_of(&mut top.table("ingress"));
        let health = health_of(&mut top.table("health"), port);
        let rollout = rollout_of(&mut top.table("rollout"));
        let release = release_of(&mut top.table("release"));
        let mut egress = top.table("egress");
        egress.refuse_unknown(&["allow"]);
        let egress_allow = egress.list("allow");
        let placement = placement::of(&mut top.table("placement"), count, &egress_allow);
        if let Some(max) = max.filter(|max| *max < count) {
            problems.push(problem("max", &Value::from(max), &format!("at least count, {count}")));
        }
        let (beside, who) = match (rollout.canaries(count), &release) {
            (0, Some(_)) => (1, "the release command has"),
            (canaries, _) => (canaries, "canaries have"),
        };
        let least = count.saturating_add(beside);
        if let Some(max) = max.filter(|max| (count..least).contains(max)) {
            let allowed = format!("at least {least}, or {who} no room beside count, {count}");
            problems.push(problem("max", &Value::from(max), &allowed));
        }
        match (app, image, problems.is_empty()) {
            (Some(app), Some(image), true) => Ok(Self {
                app,
                project: project.unwrap_or_default(),
                image,
                count,
                max,
                port,
                hosts,
                resources,
                process,
                ingress,
                health,
                egress_allow,
                restart,
                rollout,
                secrets,
                release,
                runtime,
                user_namespace,
                attached,
                replace_lost,
                placement,
                priority,
            }),
            _ => Err(problems),
        }
    }
}

const RESTART_CHOICES: [(&str, RestartPolicy); 3] = [
    ("always", RestartPolicy::Always),
    ("on-failure", RestartPolicy::OnFailure),
    ("never", RestartPolicy::Never),
];

const ATTACHED_CHOICES: [(&str, Attached); 2] =
    [("terminal", Attached::Terminal), ("pipes", Attached::Pipes)];

/// What an app has not whose one instance is there for one client.
const NOT_BESIDE_ATTACHED: [&str; 7] =
    ["max", "port", "hosts", "ingress", "health", "rollout", "release"];

fn refuse_beside_attached(top: &mut Table<'_>) {
    for key in NOT_BESIDE_ATTACHED {
        if let Some(value) = top.map.and_then(|map| map.get(key)) {
            top.refuse(key, value, "nothing of the kind beside attached");
        }
    }
    for (key, only) in [("count", Value::from(1)), ("restart", Value::from("never"))] {
        if let Some(value) = top.map.and_then(|map| map.get(key)).filter(|value| **value != only) {
            top.refuse(key, value, &format!("{only} beside attached"));
        }
    }
}

fn priority_of(top: &mut Table<'_>) -> Priority {
    let (least, most) = (Priority::LOWEST.into(), Priority::HIGHEST.into());
    let number = top.number("priority", least, most).and_then(|number| u8::try_from(number).ok());
    number.and_then(Priority::new).unwrap_or_default()
}

fn port_of(number: u32) -> Option<Port> {
    u16::try_from(number).ok().and_then(Port::new)
}

fn env_of(table: &mut Table<'_>) -> BTreeMap<String, String> {
    let Some(map) = table.map else {
        return BTreeMap::new();
    };
    let mut env = BTreeMap::new();
    for (key, value) in map {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => {
                table.refuse(key, value, "a text, a number, true or false");
                continue;
            }
        };
        if key.is_empty() || key.contains(['=', '\0']) || text.contains('\0') {
            table.refuse(key, value, "a name without '=' and a value without a zero byte");
        } else {
            env.insert(key.clone(), text);
        }
    }
    env
}

/// All of a release are stored in one transaction with it.
const MAX_SECRETS: usize = 50;
/// Files that the platform writes itself.
const OWN_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
/// What the kernel shows, where nothing else can be.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc/", "/sys/", "/dev/"];

fn secrets_of(
    table: &mut Table<'_>,
    env: &BTreeMap<String, String>,
) -> BTreeMap<SecretPlace, SecretName> {
    let mut secrets = BTreeMap::new();
    let n_secrets = table.map.map_or(0, serde_json::Map::len);
    if n_secrets > MAX_SECRETS {
        table.refuse("(all)", &Value::from(n_secrets), "at most 50");
        return secrets;
    }
    for (key, value) in table.map.into_iter().flatten() {
        let place = match key.parse::<SecretPlace>() {
            Ok(place) => place,
            Err(error) => {
                table.refuse(key, value, error.allowed);
                continue;
            }
        };
        let taken = match &place {
            SecretPlace::Variable(name) if env.contains_key(name) => {
                Some("a name that env has not")
            }
            SecretPlace::Variable(name) if name.starts_with("LONGSHORE_") => {
                Some("a name that does not begin with LONGSHORE_")
            }
            SecretPlace::File(path) if OWN_FILES.contains(&path.as_str()) => {
                Some("a file that the platform does not write itself")
            }
            SecretPlace::File(path)
                if KERNEL_DIRECTORIES.iter().any(|dir| path.starts_with(dir)) =>
            {
                Some("a file outside of /proc, /sys and /dev")
            }
            _ => None,
        };
        if let Some(allowed) = taken {
            table.refuse(key, value, allowed);
            continue;
        }
        match value.as_str().map(str::parse::<SecretName>) {
            Some(Ok(name)) => {
                secrets.insert(place, name);
            }
            Some(Err(error)) => table.refuse(key, value, error.allowed),
            None => table.refuse(key, value, "the name of a secret"),
        }
    }
    secrets
}

fn resources_of(table: &mut Table<'_>, runtime: RuntimeName) -> Resources {
    table.refuse_unknown(&["cpu", "memory", "pids", "disk", "open_files", "gpu"]);
    let defaults = Resources::default();
    let cpu: Option<MilliCpu> = table.text("cpu");
    let memory: Option<ByteCount> = table.text("memory");
    let (least_memory, least_pids) = runtime.least();
    if let Some(memory) = memory.filter(|memory| *memory < least_memory) {
        let mib = least_memory.0 >> 20;
        let allowed = format!("at least {mib}MiB with the runtime {runtime}");
        table.refuse("memory", &Value::from(memory.to_string()), &allowed);
    }
    let disk: Option<ByteCount> = table.text("disk");
    let allowed = ByteCount::mib(4)..=ByteCount::gib(8 << 10);
    if let Some(disk) = disk.filter(|disk| !allowed.contains(disk)) {
        table.refuse("disk", &Value::from(disk.to_string()), "from 4MiB to 8TiB");
    }
    Resources {
        cpu: cpu.unwrap_or(defaults.cpu),
        memory: memory.unwrap_or(defaults.memory),
        pids: table.number("pids", least_pids, 4_194_304).unwrap_or(defaults.pids),
        disk: disk.unwrap_or(defaults.disk),
        // Less than 16 starts no program with a few libraries; more the kernel never takes.
        open_files: table.number("open_files", 16, 1_048_576),
        gpu: gpu::of(&mut table.table_within("gpu", "resources.gpu")),
    }
}

fn process_of(table: &mut Table<'_>, env: BTreeMap<String, String>) -> ProcessOverrides {
    table.refuse_unknown(&[
        "entrypoint",
        "command",
        "user",
        "workdir",
        "drain",
        "stop_signal",
        "stop_grace",
    ]);
    let workdir: Option<String> = table.text("workdir");
    if let Some(path) = workdir.as_ref().filter(|path| !path.starts_with('/')) {
        table.refuse("workdir", &Value::from(path.as_str()), "an absolute path");
    }
    ProcessOverrides {
        entrypoint: table.optional_list("entrypoint"),
        command: table.optional_list("command"),
        user: table.text("user"),
        workdir,
        drain: table.text("drain").unwrap_or(ProcessOverrides::DEFAULT_DRAIN),
        stop_signal: table.text::<SignalName>("stop_signal").map(|signal| signal.0),
        stop_grace: table.text("stop_grace").unwrap_or(ProcessOverrides::DEFAULT_STOP_GRACE),
        env,
    }
}

/// The name of a signal with its `SIG`.
struct SignalName(String);

/// The signals that may ask a process to stop, and what else images are seen to use.
const SIGNALS: &[&str] = &[
    "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL",
    "SIGABRT", "SIGALRM", "SIGCONT", "SIGPWR",
];

impl FromStr for SignalName {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let upper = text.to_ascii_uppercase();
        let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        let realtime =
            full.starts_with("SIGRTMIN+") && full[9..].parse::<u8>().is_ok_and(|n| n <= 15);
        if SIGNALS.contains(&full.as_str()) || realtime {
            Ok(Self(full))
        } else {
            Err(ParseError::new(
                "signal",
                text,
                "a name such as SIGTERM, SIGINT, SIGQUIT or SIGRTMIN+3",
            ))
        }
    }
}

fn ingress_of(table: &mut Table<'_>) -> IngressRules {
    table.refuse_unknown(&["protocol", "slow_start", "outlier_ejection"]);
    let defaults = IngressRules::default();
    let slow_start = table.text("slow_start").unwrap_or(defaults.slow_start);
    if slow_start > IngressRules::MAX_SLOW_START {
        table.refuse("slow_start", &Value::from(slow_start.to_string()), "at most 1h");
    }
    IngressRules {
        protocol: table.choice("protocol", &AppProtocol::ALL).unwrap_or(defaults.protocol),
        slow_start,
        outlier_ejection: table.flag("outlier_ejection").unwrap_or(defaults.outlier_ejection),
    }
}

fn health_of(table: &mut Table<'_>, app_port: Option<Port>) -> Option<Health> {
    table.refuse_unknown(&[
        "kind",
        "path",
        "port",
        "interval",
        "timeout",
        "failures",
        "start_deadline",
    ]);
    let port = table.number("port", 1, 65535).and_then(port_of).or(app_port);
    let asked = table.map.is_some();
    let Some(port) = port else {
        if asked {
            table.missing("port", "a health check needs a port: set port or health.port");
        }
        return None;
    };
    let path: Option<String> = table.text("path");
    if let Some(path) =
        path.as_ref().filter(|path| !path.starts_with('/') || path.contains(char::is_whitespace))
    {
        table.refuse(
            "path",
            &Value::from(path.as_str()),
            "a path beginning with '/', without blanks",
        );
    }
    let http = table.choice("kind", &[("http", true), ("tcp", false)]).unwrap_or(path.is_some());
    if let (false, Some(path)) = (http, &path) {
        table.refuse("path", &Value::from(path.as_str()), "only with kind = \"http\"");
    }
    let defaults = Health::tcp(port);
    let kind = if http {
        HealthKind::Http { path: path.unwrap_or_else(|| "/".to_owned()) }
    } else {
        HealthKind::Tcp
    };
    Some(Health {
        kind,
        port,
        interval: table.text("interval").unwrap_or(defaults.interval),
        timeout: table.text("timeout").unwrap_or(defaults.timeout),
        failures: table.number("failures", 1, 100).unwrap_or(defaults.failures),
        start_deadline: table.text("start_deadline").unwrap_or(defaults.start_deadline),
    })
}

fn rollout_of(table: &mut Table<'_>) -> Rollout {
    table.refuse_unknown(&[
        "max_surge",
        "max_unavailable",
        "deadline",
        "revert",
        "canary",
        "canary_wait",
        "waves",
    ]);
    let defaults = Rollout::default();
    let rollout = Rollout {
        max_surge: table.text("max_surge").unwrap_or(defaults.max_surge),
        max_unavailable: table.text("max_unavailable").unwrap_or(defaults.max_unavailable),
        deadline: table.text("deadline").unwrap_or(defaults.deadline),
        revert: table.flag("revert").unwrap_or(defaults.revert),
        canary: table.text("canary").unwrap_or(defaults.canary),
        canary_wait: table.text("canary_wait"),
        waves: table.flag("waves").unwrap_or(defaults.waves),
    };
    if rollout.deadline < Duration::from_secs(1) {
        let value = Value::from(rollout.deadline.to_string());
        table.refuse("deadline", &value, "at least 1s");
    }
    if rollout.max_surge.is_none() && rollout.max_unavailable.is_none() {
        let value = Value::from(rollout.max_surge.to_string());
        table.refuse("max_surge", &value, "more than 0 unless max_unavailable is");
    }
    if let Some(wait) = rollout.canary_wait.filter(|_| rollout.canary.is_none()) {
        let value = Value::from(wait.to_string());
        table.refuse("canary_wait", &value, "nothing, unless canary is more than 0");
    }
    rollout
}

fn release_of(table: &mut Table<'_>) -> Option<ReleaseCommand> {
    table.refuse_unknown(&["command", "timeout"]);
    table.map?;
    let timeout = table.text("timeout").unwrap_or(ReleaseCommand::DEFAULT_TIMEOUT);
    if timeout < Duration::from_secs(1) {
        table.refuse("timeout", &Value::from(timeout.to_string()), "at least 1s");
    }
    let command = table.optional_list("command").unwrap_or_default();
    if command.is_empty() {
        table.refuse("command", &Value::Array(Vec::new()), "a list of at least the program");
        return None;
    }
    Some(ReleaseCommand { command, timeout })
}

#[cfg(test)]
mod tests;
