//! A place to run containers in, which notices what they leave behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use longshore_runtime::logs::{Follow, LogLine, read_log};
use longshore_runtime::{
    ContainerSpec, ExitRecord, LogPolicy, ResolvedUser, Running, RuntimeKind, RuntimePrograms,
    Shims, ShimsConfig, SignalNumber, UserNamespace, probe,
};
use longshore_types::{Ability, ByteCount, IdRange, InstanceId, MilliCpu, Resources, RuntimeName};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";
const DEADLINE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Directories, a cgroup root and an agent's handle of one test.
pub struct Bed {
    dir: TempDir,
    name: String,
    runtime: RuntimeKind,
    pub shims: Shims,
    /// Whether its containers have user namespaces.
    pub has_users: bool,
    /// The processes that keep the user namespaces of the specs.
    holders: Mutex<Vec<Child>>,
}

/// Says that a test does nothing here, also to whoever counts: one line for each in the file
/// that `cargo xtask test` names.
fn note_skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("LONGSHORE_SKIPPED") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        let line = format!("{why}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is counted");
    }
}

/// Where the programs of the runtimes are. Debian 12 has no runsc; `cargo xtask test` fetches that of
/// a newer one.
fn programs() -> RuntimePrograms {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/newer-debian");
    let newer = std::env::var_os("LONGSHORE_NEWER_DEBIAN").map_or(beside.into(), PathBuf::from);
    RuntimePrograms { runsc: Some(newer.join("runsc/usr/bin/runsc")), ..Default::default() }
}

impl Bed {
    /// A bed for containers of this runtime; none where the runtime says that it cannot be used on
    /// this kernel.
    pub fn new(runtime: RuntimeName) -> Option<Self> {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make containers: run them as root"
        );
        assert!(
            Path::new(BUSYBOX).exists(),
            "{BUSYBOX} is missing: install the apt package busybox-static"
        );
        let dir = TempDir::with_prefix("longshore-runtime-").expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("a mode");
        let offers = probe(&programs(), dir.path());
        let offer = offers.into_iter().find(|offer| offer.runtime == runtime).expect("every row");
        let found = programs().find(runtime);
        let kind =
            found.unwrap_or_else(|why| panic!("{runtime}: {why} (`cargo xtask test` installs it)"));
        if let Some(why) = offer.refusal(&Ability::ALWAYS) {
            note_skip(&why);
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("longshore-test-{}-{number}", std::process::id());
        // A cgroup that was delegated to these tests, where there is one.
        let parent = std::env::var("LONGSHORE_TEST_CGROUP").unwrap_or_default();
        let name = format!("{parent}/{name}").trim_matches('/').to_owned();
        let shims = Self::agent(dir.path(), &name);
        let has_users = offer.refusal(&[Ability::UserNamespace]).is_none();
        Some(Self { dir, name, runtime: kind, shims, has_users, holders: Mutex::default() })
    }

    /// The programs of the host that make containers here.
    pub fn programs(&self) -> Vec<PathBuf> {
        let runtime = match &self.runtime {
            RuntimeKind::Embedded => None,
            RuntimeKind::Runc(path) | RuntimeKind::Crun(path) | RuntimeKind::Runsc(path) => {
                Some(path.clone())
            }
        };
        runtime.into_iter().chain([env!("CARGO_BIN_EXE_runtime-test-shim").into()]).collect()
    }

    /// True when the container has a kernel of its own, so that its processes are not the host's, and
    /// what the kernel uses counts against the limits.
    pub fn is_sandboxed(&self) -> bool {
        matches!(self.runtime, RuntimeKind::Runsc(_))
    }

    /// True when nothing else has to be installed, which is also the quickest to start.
    pub fn is_embedded(&self) -> bool {
        self.runtime == RuntimeKind::Embedded
    }

    /// Memory for a program that needs `mib`, and for the kernel under it if it has its own.
    pub fn memory(&self, mib: u64) -> ByteCount {
        ByteCount::mib(if self.is_sandboxed() { mib + 128 } else { mib })
    }

    /// How many processes the container has.
    pub fn n_processes(&self, running: &Running) -> usize {
        let RuntimeKind::Runsc(program) = &self.runtime else {
            return self.payload_file(running.id(), "pids", "cgroup.procs").lines().count();
        };
        let root = self.dir.path().join("run").join(running.id().as_str()).join("runtime");
        let mut ps = std::process::Command::new(program);
        ps.arg("--root").arg(root).args(["ps", "--format", "json", running.id().as_str()]);
        let output = ps.output().expect("runsc runs");
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        listed.as_array().map_or(0, Vec::len)
    }

    /// A user namespace that lives as long as the bed.
    fn users(&self) -> UserNamespace {
        let number = (std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed)) % 30_000;
        let ids = IdRange::new((1024 + number) << 16).expect("a range");
        let (id, map) = (ids.first().to_string(), format!("0 {} {}", ids.first(), IdRange::LEN));
        // It must belong to its own root.
        let holder = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "unshare", "--user", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("setpriv is of the package util-linux");
        let proc = PathBuf::from(format!("/proc/{}", holder.id()));
        let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
        let deadline = Instant::now() + DEADLINE;
        while fs::read_link(proc.join("ns/user")).expect("a namespace") == own {
            assert!(Instant::now() < deadline, "unshare makes no user namespace");
            std::thread::yield_now();
        }
        for file in ["uid_map", "gid_map"] {
            fs::write(proc.join(file), &map).expect("the map is accepted");
        }
        self.holders.lock().expect("no test panics in here").push(holder);
        UserNamespace { path: proc.join("ns/user"), ids }
    }

    fn agent(dir: &Path, name: &str) -> Shims {
        Shims::new(ShimsConfig {
            executable: env!("CARGO_BIN_EXE_runtime-test-shim").into(),
            run_dir: dir.join("run"),
            state_dir: dir.join("state"),
            cgroup_root: format!("/{name}"),
        })
        .expect("this machine can run containers")
    }

    /// A new agent on the same directories, as after a restart.
    pub fn restart_agent(&mut self) {
        self.shims = Self::agent(self.dir.path(), &self.name);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directories of an instance's container in the v1 hierarchies, or the one of v2.
    pub fn payload_file(&self, id: &InstanceId, controller: &str, file: &str) -> String {
        self.cgroup_file(id, "payload", controller, file)
    }

    /// The same of its shim.
    pub fn shim_file(&self, id: &InstanceId, controller: &str, file: &str) -> String {
        self.cgroup_file(id, "shim", controller, file)
    }

    fn cgroup_file(&self, id: &InstanceId, part: &str, controller: &str, file: &str) -> String {
        let below = format!("{}/{id}/{part}/{file}", self.name);
        let candidates = [
            PathBuf::from("/sys/fs/cgroup").join(controller).join(&below),
            PathBuf::from("/sys/fs/cgroup").join(&below),
        ];
        let found = candidates.iter().find_map(|path| fs::read_to_string(path).ok());
        found.unwrap_or_else(|| panic!("none of {candidates:?} can be read")).trim().to_owned()
    }

    /// A spec that runs `args` in a fresh busybox root file system, with users of its own where the
    /// runtime can.
    pub fn spec(&self, args: &[&str]) -> ContainerSpec {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id: InstanceId = format!("web-{number:08}").parse().expect("a valid id");
        let rootfs = self.dir.path().join(format!("rootfs-{id}"));
        make_rootfs(&rootfs);
        let users = self.has_users.then(|| self.users());
        if let Some(users) = &users {
            give(&rootfs, users.ids.first());
        }
        ContainerSpec {
            rootfs,
            users,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
            secret_env: BTreeMap::new(),
            cwd: "/".to_owned(),
            user: ResolvedUser::root(),
            hostname: "box".to_owned(),
            netns: None,
            limits: Resources {
                cpu: MilliCpu(1000),
                memory: self.memory(64),
                pids: if self.is_sandboxed() { 256 } else { 64 },
                ..Resources::default()
            },
            files: Vec::new(),
            stop_signal: SignalNumber::TERM,
            log: LogPolicy {
                path: self.shims.state_dir(&id).join("log"),
                max_size: ByteCount::mib(1),
                files: 3,
            },
            runtime: self.runtime.clone(),
            client: None,
            id,
        }
    }

    pub fn script(&self, script: &str) -> ContainerSpec {
        self.spec(&["sh", "-c", script])
    }

    /// Like [`Bed::script`], with the machine's users.
    pub fn script_without_users(&self, script: &str) -> ContainerSpec {
        let mut spec = self.script(script);
        give(&spec.rootfs, 0);
        spec.users = None;
        spec
    }

    /// Starts a container, which must work.
    pub async fn start(&self, spec: &ContainerSpec) -> Running {
        match self.shims.start(spec).await {
            Ok(running) => running,
            Err(error) => panic!("start failed: {error:?}"),
        }
    }

    /// Runs a container to its end and returns what it printed.
    pub async fn run(&self, spec: &ContainerSpec) -> (ExitRecord, String) {
        let record = self.start(spec).await.wait().await.expect("the end is known");
        (record, text(&log_lines(spec, None).await))
    }

    /// Runs a script to its end and returns what it printed.
    pub async fn output(&self, script: &str) -> String {
        self.run(&self.script(script)).await.1
    }

    /// Removes everything, and fails when something stays.
    pub async fn finish(self) {
        for entry in fs::read_dir(self.dir.path().join("state")).expect("the state directory") {
            let name = entry.expect("an entry").file_name();
            let id = name.to_str().expect("text").parse().expect("an id");
            self.shims.remove(&id).await.expect("removal works");
        }
        self.shims.remove_empty_root();
        self.end_holders();
        eventually(
            "leftovers to be gone",
            || self.leftovers().is_empty(),
            || format!("{:?}", self.leftovers()),
        )
        .await;
    }

    fn end_holders(&self) {
        for mut holder in
            self.holders.lock().into_iter().flat_map(|mut all| std::mem::take(&mut *all))
        {
            // It ends with its input.
            drop(holder.stdin.take());
            holder.wait().expect("it ends");
        }
    }

    fn cgroup_directories(&self) -> Vec<PathBuf> {
        let mounts = fs::read_dir("/sys/fs/cgroup").expect("cgroups are mounted");
        let mounts = mounts.map(|entry| entry.expect("an entry").path());
        let roots = mounts.map(|mount| mount.join(&self.name));
        let roots = roots.chain([Path::new("/sys/fs/cgroup").join(&self.name)]);
        roots.filter(|root| root.exists()).collect()
    }

    /// Everything on this machine that carries the name of this bed.
    fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        found.extend(self.cgroup_directories().iter().map(|dir| format!("cgroup {dir:?}")));
        let own = self.dir.path().to_str().expect("text").to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        found.extend(mounts.lines().filter(|l| l.contains(&own)).map(|l| format!("mount {l}")));
        for pid in all_pids() {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&own) {
                found.push(format!("process {pid}"));
            }
        }
        let zombies = all_pids().into_iter().filter(|pid| is_our_zombie(*pid));
        found.extend(zombies.map(|pid| {
            format!(
                "zombie {}",
                fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
            )
        }));
        let run = fs::read_dir(self.dir.path().join("run")).expect("the run directory");
        found.extend(run.map(|entry| format!("run {:?}", entry.expect("an entry").file_name())));
        found
    }
}

impl Drop for Bed {
    /// What a failed test left running is ended by force.
    fn drop(&mut self) {
        self.end_holders();
        for root in self.cgroup_directories() {
            let mut dirs = vec![root];
            let mut idx = 0;
            while idx < dirs.len() {
                if let Ok(entries) = fs::read_dir(&dirs[idx]) {
                    dirs.extend(entries.flatten().map(|e| e.path()).filter(|path| path.is_dir()));
                }
                idx += 1;
            }
            for dir in dirs.iter().rev() {
                let deadline = Instant::now() + DEADLINE;
                while fs::remove_dir(dir).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
                    && Instant::now() < deadline
                {
                    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                        kill(pid, libc::SIGKILL);
                    }
                    std::thread::yield_now();
                }
            }
        }
    }
}

pub fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn is_our_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.next() == Some("Z") && fields.next() == Some(&std::process::id().to_string())
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: sends a signal, touches no memory.
    unsafe { libc::kill(pid, signal) };
}

pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Waits until something is so, and fails with a description of what is instead.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool, instead: impl Fn() -> String) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {what}: {}", instead());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The shim of a container: the parent of its first process.
pub fn shim_of(running: &Running) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).expect("it runs");
    let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
    parent.expect("a parent").parse().expect("a number")
}

pub async fn log_lines(spec: &ContainerSpec, tail: Option<usize>) -> Vec<LogLine> {
    let lines = read_log(&spec.log.path, tail, Follow::No);
    lines.map(|line| line.expect("the log can be read")).collect().await
}

/// Follows the log until a line is this text.
pub async fn until_line(spec: &ContainerSpec, text: &str) {
    let mut lines = Box::pin(read_log(&spec.log.path, None, Follow::UntilExit));
    let seek = async {
        while let Some(line) = lines.next().await {
            if line.expect("the log can be read").text == text {
                return;
            }
        }
        panic!("the container ended without printing {text:?}");
    };
    tokio::time::timeout(DEADLINE, seek).await.expect("the line comes");
}

pub fn text(lines: &[LogLine]) -> String {
    lines.iter().map(|line| format!("{}\n", line.text)).collect()
}

/// Makes everything below a directory belong to a user and the group of that number.
pub fn give(dir: &Path, id: u32) {
    lchown(dir, Some(id), Some(id)).expect("this is root");
    if dir.symlink_metadata().expect("it is there").is_dir() {
        for entry in fs::read_dir(dir).expect("a directory") {
            give(&entry.expect("an entry").path(), id);
        }
    }
    if dir.ends_with("tmp") {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o1777)).expect("a mode");
    }
}

fn make_rootfs(rootfs: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(dir)).expect("a directory");
    }
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("busybox can be copied");
    for applet in [
        "sh",
        "cat",
        "ls",
        "sleep",
        "dd",
        "id",
        "mount",
        "unshare",
        "mknod",
        "echo",
        "head",
        "wc",
        "hostname",
        "pwd",
        "env",
        "kill",
        "readlink",
        "basename",
        "mkdir",
        "chroot",
        "seq",
        "start-stop-daemon",
        "ip",
        "touch",
        "stat",
        "chown",
        "true",
        "od",
        "grep",
        "ps",
        "mv",
        "ln",
        "rm",
        "stty",
        "tty",
    ] {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("a link");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).expect("a file");
    fs::write(rootfs.join("etc/group"), "root:x:0:\nweb:x:34:\nlog:x:40:web\n").expect("a file");
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a mode");
}
