//! The OCI runtime configuration of a container, with docker's defaults and fewer rights.
//!
//! It is built as the JSON document that every OCI runtime reads, so that a driver for another
//! runtime takes it as it is. What differs from docker: no CAP_MKNOD and no CAP_NET_RAW, no new
//! privileges always, no core dumps, no swap, no cgroup file system. Not in it: limits and device
//! rules, which the shim writes to the cgroup itself, and the system call filter, which is installed
//! by our own code just before the program runs.
//!
//! A user namespace is one more entry of `namespaces`, by its path: it was made with its mappings
//! before, because the network namespace belongs to it. Users and groups here are those inside.

use std::collections::BTreeMap;
use std::path::Path;

use longshore_types::{IdRange, Resources};
use rustix::process::Resource::Nofile;
use rustix::process::{Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::spec::{ContainerSpec, RuntimeKind, TerminalSize, UserNamespace};
use crate::user::ResolvedUser;

/// A capability: its number in the kernel and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The bit.
    pub number: u8,
    /// The name, as in `CAP_CHOWN`.
    pub name: &'static str,
}

const fn capability(number: u8, name: &'static str) -> Capability {
    Capability { number, name }
}

/// The capabilities of a container's root, and the most that any of its processes can ever have:
/// what the official nginx, redis and postgres images need to change users, own files and listen.
/// Not among them, though docker grants them: CAP_MKNOD (device nodes) and CAP_NET_RAW (forged
/// packets; `ping` works without it through ICMP sockets). A process that does not run as root has
/// none.
pub const CAPABILITIES: [Capability; 12] = [
    capability(0, "CAP_CHOWN"),
    capability(1, "CAP_DAC_OVERRIDE"),
    capability(3, "CAP_FOWNER"),
    capability(4, "CAP_FSETID"),
    capability(5, "CAP_KILL"),
    capability(6, "CAP_SETGID"),
    capability(7, "CAP_SETUID"),
    capability(8, "CAP_SETPCAP"),
    capability(10, "CAP_NET_BIND_SERVICE"),
    capability(18, "CAP_SYS_CHROOT"),
    capability(29, "CAP_AUDIT_WRITE"),
    capability(31, "CAP_SETFCAP"),
];

/// The bits of [`CAPABILITIES`].
pub(crate) fn capability_bits() -> u64 {
    CAPABILITIES.iter().fold(0, |bits, capability| bits | 1 << capability.number)
}

/// The bits that a process of this user has in force.
pub(crate) fn effective_bits(user: &ResolvedUser) -> u64 {
    if user.uid == 0 { capability_bits() } else { 0 }
}

/// Paths that no container can read.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that no container can write to.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The `PATH` of a container whose image sets none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// More open files were asked for than this process can hand on.
#[derive(Debug, thiserror::Error)]
#[error(
    "resources.open_files = {asked}: this node can give at most {most}; raise the limit of its agent \
     (LimitNOFILE in a systemd unit)"
)]
pub(crate) struct TooManyOpenFiles {
    asked: u64,
    most: u64,
}

/// What a container's processes get of what this process may hand on. Raising a hard limit or
/// lowering the score needs CAP_SYS_RESOURCE, which an agent that runs in a container itself often
/// lacks; then its own bounds apply, save to a limit that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The soft and the hard limit.
    open_files: (u64, u64),
    oom_score: i32,
}

impl Bounds {
    /// The bounds of this process for a container with these limits. Raises its own limit on open
    /// files where that is too low and it may, for a child in a user namespace never may.
    pub fn own(limits: &Resources) -> Result<Self, TooManyOpenFiles> {
        let (soft, hard) = limits.open_file_limits();
        let (soft, hard) = (u64::from(soft), u64::from(hard));
        let own = getrlimit(Nofile);
        let most = own.maximum.unwrap_or(u64::MAX);
        let raised = Rlimit { current: own.current, maximum: Some(hard.max(most)) };
        let most = match setrlimit(Nofile, raised) {
            Ok(()) => hard.max(most),
            Err(_) if limits.open_files.is_some() && hard > most => {
                return Err(TooManyOpenFiles { asked: hard, most });
            }
            Err(_) => most,
        };
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
        Ok(Self {
            open_files: (soft.min(most), hard.min(most)),
            oom_score: score.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
        })
    }
}

/// The environment with what every process gets when the image does not say.
fn environment(env: &BTreeMap<String, String>, user: &ResolvedUser) -> Vec<String> {
    let mut all: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    for (key, value) in [("PATH", DEFAULT_PATH), ("HOME", user.home.as_str())] {
        if !env.contains_key(key) {
            all.push(format!("{key}={value}"));
        }
    }
    all
}

/// The process in a terminal of this size.
pub(crate) fn in_terminal(process: &Value, size: TerminalSize) -> Value {
    let mut process = process.clone();
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": size.rows, "width": size.columns});
    process
}

/// The `process` object: also what an `exec` is described by.
pub(crate) fn process(
    args: &[String],
    env: &BTreeMap<String, String>,
    cwd: &str,
    user: &ResolvedUser,
    bounds: Bounds,
) -> Value {
    let (soft, hard) = bounds.open_files;
    let granted: Vec<&str> = CAPABILITIES.iter().map(|capability| capability.name).collect();
    let in_force: &[&str] = if user.uid == 0 { &granted } else { &[] };
    json!({
        "terminal": false,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": user.additional_gids,
            "umask": 0o022,
        },
        "args": args,
        "env": environment(env, user),
        "cwd": cwd,
        "capabilities": {
            "bounding": granted,
            "effective": in_force,
            "permitted": in_force,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "noNewPrivileges": true,
        "oomScoreAdj": bounds.oom_score.max(0),
    })
}

fn mounts(spec: &ContainerSpec) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    // Other runtimes find these mounted (`driver/shown.rs`).
    let shown = if spec.runtime == RuntimeKind::Embedded { &*spec.files } else { &[] };
    mounts.extend(shown.iter().map(|file| {
        json!({
            "destination": file.destination,
            "type": "bind",
            "source": file.source,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        })
    }));
    mounts
}

fn namespaces(netns: Option<&Path>, users: Option<&UserNamespace>) -> Vec<Value> {
    let mut namespaces: Vec<Value> =
        ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind})).into();
    namespaces.push(match netns {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    });
    namespaces.extend(users.map(|users| json!({"type": "user", "path": users.path})));
    namespaces
}

/// The whole `config.json`.
pub(crate) fn config(spec: &ContainerSpec, cgroups_path: &str, bounds: Bounds) -> Value {
    let mut config = json!({
        "ociVersion": "1.1.0",
        "process": process(&spec.args, &spec.env, &spec.cwd, &spec.user, bounds),
        "root": {"path": spec.rootfs, "readonly": false},
        "hostname": spec.hostname,
        "mounts": mounts(spec),
        "linux": {
            "namespaces": namespaces(spec.netns.as_deref(), spec.users.as_ref()),
            "cgroupsPath": cgroups_path,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    });
    if let Some(UserNamespace { ids, .. }) = &spec.users {
        // What the namespace has already; runc asks for it all the same.
        let all = json!([{"containerID": 0, "hostID": ids.first(), "size": IdRange::LEN}]);
        config["linux"]["uidMappings"] = all.clone();
        config["linux"]["gidMappings"] = all;
    }
    config
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Resources};

    use super::*;
    use crate::spec::{LogPolicy, ReadOnlyFile};
    use crate::{SignalNumber, user::ResolvedUser};

    fn spec(user: ResolvedUser) -> ContainerSpec {
        ContainerSpec {
            id: "web-01234567".parse().unwrap(),
            rootfs: "/r".into(),
            args: vec!["sh".to_owned()],
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            secret_env: BTreeMap::new(),
            cwd: "/srv".to_owned(),
            user,
            hostname: "web".to_owned(),
            netns: Some("/run/netns/x".into()),
            users: None,
            limits: Resources::default(),
            files: vec![ReadOnlyFile { source: "/h".into(), destination: "/etc/hosts".to_owned() }],
            stop_signal: SignalNumber::TERM,
            log: LogPolicy { path: "/l".into(), max_size: ByteCount::mib(1), files: 2 },
            runtime: RuntimeKind::Embedded,
            client: None,
        }
    }

    fn bounds() -> Bounds {
        Bounds::own(&Resources::default()).unwrap()
    }

    #[test]
    fn is_a_valid_runtime_configuration() {
        let config = config(&spec(ResolvedUser::root()), "/longshore/web/payload", bounds());
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(config).unwrap();
        let process = parsed.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        let env = process.env().as_ref().unwrap();
        assert!(env.contains(&"HOME=/root".to_owned()) && env.contains(&"A=1".to_owned()));
        assert_eq!(parsed.mounts().as_ref().unwrap().len(), 7);
        let granted = process.capabilities().as_ref().unwrap().effective().as_ref().unwrap();
        assert_eq!(granted.len(), CAPABILITIES.len());
    }

    #[test]
    fn a_user_namespace_is_joined_by_its_path() {
        let ids = IdRange::new(671_088_640).unwrap();
        let users = Some(UserNamespace { path: "/run/users/x".into(), ids });
        let spec = ContainerSpec { users, ..spec(ResolvedUser::root()) };
        let config = config(&spec, "/x", bounds());
        let joined = json!({"type": "user", "path": "/run/users/x"});
        assert!(config["linux"]["namespaces"].as_array().unwrap().contains(&joined));
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 671_088_640);
        assert_eq!(config["linux"]["gidMappings"], config["linux"]["uidMappings"]);
        assert!(serde_json::from_value::<oci_spec::runtime::Spec>(config).is_ok());
    }

    #[test]
    fn other_users_have_no_capabilities() {
        let user = ResolvedUser { uid: 7, gid: 7, additional_gids: vec![7], home: "/".to_owned() };
        let config = config(&spec(user), "/x", bounds());
        let capabilities = &config["process"]["capabilities"];
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(capabilities[set], json!([]), "{set}");
        }
        assert_eq!(capabilities["bounding"].as_array().unwrap().len(), 12);
    }

    #[test]
    fn the_dangerous_capabilities_are_not_granted() {
        for name in ["CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"] {
            assert!(CAPABILITIES.iter().all(|capability| capability.name != name), "{name}");
        }
        assert_eq!(capability_bits(), 0xa004_05fb);
    }
}
