//! Ways out of a container that once worked with some runtime, tried with each. What is out there is
//! a canary on the host, which must be as it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use longshore_runtime::{ContainerSpec, ExecEvent, ExecRequest, ReadOnlyFile, Running};

use crate::bed::{Bed, is_alive, log_lines, shim_of, text, until_line};

const SECRET: &str = "only the host knows this";

/// A directory of the host with one file.
struct Canary(PathBuf);

impl Canary {
    fn new(bed: &Bed) -> Self {
        let dir = bed.path().join("canary");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("secret"), SECRET).expect("a file");
        Self(dir)
    }

    fn assert_untouched(&self, what: &str) {
        let names: Vec<_> = fs::read_dir(&self.0)
            .expect("the canary")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["secret"], "{what}");
        assert_eq!(
            fs::read_to_string(self.0.join("secret")).expect("the canary"),
            SECRET,
            "{what}"
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let path = self.0.to_str().expect("text");
        assert!(!mounts.contains(path), "{what}: {mounts}");
    }
}

/// Runs a container to its end, or learns that it was refused; gives what it printed, and why not.
async fn attempt(bed: &Bed, spec: &ContainerSpec) -> String {
    match bed.shims.start(spec).await {
        Ok(running) => {
            running.wait().await.expect("the end is known");
            text(&log_lines(spec, None).await)
        }
        Err(error) => format!("refused: {error}"),
    }
}

/// Runs a process in a container, or learns that it was refused.
async fn attempt_exec(bed: &Bed, running: &Running, request: ExecRequest) -> String {
    let mut stream = match bed.shims.exec(running.id(), request).await {
        Ok(stream) => stream,
        Err(error) => return format!("refused: {error}"),
    };
    let mut output = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => output.extend(bytes),
            Ok(ExecEvent::Exited { .. }) => {}
            Err(error) => output.extend(format!("refused: {error}").into_bytes()),
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest { args: ["sh", "-c", script].map(str::to_owned).into(), ..ExecRequest::default() }
}

/// As CVE-2019-5736: who enters a container still has the host's program as its executable, and a
/// process inside waits for that moment to write to it.
pub async fn the_runtimes_program_is_not_overwritten(bed: Bed) {
    let programs = bed.programs();
    let before: Vec<_> = programs.iter().map(|path| fs::read(path).expect("a program")).collect();
    // Through whatever process shows up whose program is not the image's, now and when it has ended.
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do \
           case $(readlink $p/exe) in */busybox|'') continue;; esac; \
           (exec 9<$p/exe; for i in 1 2 3 4 5 6 7 8; do echo pwned >> $p/exe; \
              echo pwned >> /proc/self/fd/9 && echo WROTE; done); \
         done; done 2>/dev/null";
    let spec = bed.script(script);
    fs::write(spec.rootfs.join("bin/again"), "#!/proc/self/exe\n").expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(spec.rootfs.join("bin/again"), mode).expect("a mode");
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    for program in ["/proc/self/exe", "/bin/again", "/bin/true"].into_iter().cycle().take(18) {
        let args = vec![program.to_owned(), "shim".to_owned()];
        attempt_exec(&bed, &running, ExecRequest { args, ..ExecRequest::default() }).await;
    }
    running.kill().await.expect("it ends");
    // And as the first program of a container, beside which nothing runs yet.
    let mut first = bed.spec(&["/proc/self/exe", "shim"]);
    attempt(&bed, &first).await;
    fs::copy(spec.rootfs.join("bin/again"), first.rootfs.join("bin/again")).expect("a copy");
    first.args = vec!["/bin/again".to_owned()];
    attempt(&bed, &first).await;
    let output = text(&log_lines(&spec, None).await);
    assert!(!output.contains("WROTE"), "{output}");
    for (path, before) in programs.iter().zip(before) {
        assert!(fs::read(path).expect("a program") == before, "{} was changed", path.display());
    }
    bed.finish().await;
}

/// As CVE-2024-21626: a descriptor of the host that is open when the working directory is entered.
pub async fn a_working_directory_does_not_lead_out(bed: Bed) {
    let canary = Canary::new(&bed);
    let outside = canary.0.join("secret").display().to_string();
    let script = format!(
        "for up in . .. ../.. ../../.. ../../../..; do cat $up{outside} $up/secret; done 2>/dev/null; \
         cat {outside} /proc/[0-9]*/cwd{outside} /proc/[0-9]*/root{outside} 2>/dev/null; echo tried"
    );
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    for number in 3..14 {
        let cwd = format!("/proc/self/fd/{number}");
        let asked = ExecRequest { cwd: Some(cwd.clone()), ..shell(&script) };
        let output = attempt_exec(&bed, &running, asked).await;
        assert!(!output.contains(SECRET), "exec in {cwd}: {output}");
        let mut spec = bed.script(&script);
        if number % 2 == 0 {
            symlink(&cwd, spec.rootfs.join("work")).expect("a link");
            spec.cwd = "/work".to_owned();
        } else {
            spec.cwd = cwd;
        }
        let output = attempt(&bed, &spec).await;
        assert!(!output.contains(SECRET), "start in {}: {output}", spec.cwd);
    }
    let output = attempt_exec(&bed, &running, shell(&script)).await;
    assert_eq!(output, "tried\n");
    canary.assert_untouched("a working directory");
    bed.finish().await;
}

fn replace_by_link(rootfs: &Path, name: &str, target: &Path) {
    let path = rootfs.join(name);
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(&path).expect("removable");
    }
    symlink(target, path).expect("a link");
}

/// As CVE-2021-30465 and CVE-2025-31133: what is mounted, masked or made lies behind links of the image.
pub async fn links_in_the_image_do_not_lead_mounts_out(bed: Bed) {
    let canary = Canary::new(&bed);
    let climbing =
        PathBuf::from("../".repeat(24)).join(canary.0.strip_prefix("/").expect("absolute"));
    let hosts = bed.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 box\n").expect("a file");
    let script = "cat /secret /proc/secret /dev/secret /sys/secret /etc/secret /etc/hosts; \
                  echo x > /dev/made; echo x > /etc/made; echo x > /proc/made; echo x > /dev/null; \
                  echo x > /etc/hosts; echo x > /dev/console; true";
    for name in ["proc", "dev", "sys", "etc", "etc/hosts", "dev/null", "dev/console", "dev/pts"] {
        for target in [canary.0.clone(), climbing.clone(), canary.0.join("secret")] {
            let mut spec = bed.script(script);
            replace_by_link(&spec.rootfs, name, &target);
            let (source, destination) = (hosts.clone(), "/etc/hosts".to_owned());
            spec.files = vec![ReadOnlyFile { source, destination }];
            let what = format!("{name} -> {}", target.display());
            let output = attempt(&bed, &spec).await;
            assert!(!output.contains(SECRET), "{what}: {output}");
            canary.assert_untouched(&what);
        }
    }
    assert_eq!(fs::read_to_string(&hosts).expect("a file"), "127.0.0.1 box\n");
    bed.finish().await;
}

/// The same while directories and links change places, as only somebody with a second way to write
/// to the root could do it.
pub async fn links_that_change_during_a_start_do_not_lead_out(bed: Bed) {
    let canary = Canary::new(&bed);
    let hosts = bed.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 box\n").expect("a file");
    for name in ["etc", "dev", "sys", "proc"] {
        let script = format!("cat /{name}/secret; echo x > /{name}/made; true");
        let mut spec = bed.script(&script);
        let (source, destination) = (hosts.clone(), "/etc/inner/hosts".to_owned());
        spec.files = vec![ReadOnlyFile { source, destination }];
        let (place, link) = (spec.rootfs.join(name), spec.rootfs.join("link"));
        symlink(&canary.0, &link).expect("a link");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let swapping = std::thread::spawn(move || {
            let mut n_swaps = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                let swapped = rustix::fs::renameat_with(cwd, &place, cwd, &link, flags);
                swapped.expect("they change places");
                n_swaps += 1;
            }
            n_swaps
        });
        for _ in 0..4 {
            let output = attempt(&bed, &spec).await;
            assert!(!output.contains(SECRET), "{output}");
            canary.assert_untouched(&format!("a link for {name} that changes"));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swapping.join().expect("no panic") > 100);
        canary.assert_untouched(&format!("a link for {name} that changed"));
    }
    bed.finish().await;
}

/// The same by a container that goes on while others enter it, and until it is killed and made again.
pub async fn links_that_a_container_changes_do_not_lead_out(bed: Bed) {
    let canary = Canary::new(&bed);
    let hosts = bed.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 box\n").expect("a file");
    let swap = format!(
        "cd /; while :; do for d in etc work; do \
           mv $d $d-kept && ln -s {} $d && rm $d && ln -s ../../../../proc/1/cwd $d && rm $d; \
           mv $d-kept $d; done; done",
        canary.0.display()
    );
    let mut spec = bed.script("");
    spec.cwd = "/work".to_owned();
    spec.files = vec![ReadOnlyFile { source: hosts, destination: "/etc/inner/hosts".to_owned() }];
    for round in 0..3 {
        let ready = format!("ready {round}");
        spec.args = ["sh", "-c", &format!("echo {ready}; {swap}")].map(str::to_owned).into();
        let running = bed.start(&spec).await;
        until_line(&spec, &ready).await;
        for _ in 0..2 {
            let cwd = Some("/work".to_owned());
            let look = shell("cat secret ../secret /etc/secret; echo x > made; echo x > /etc/made");
            let output = attempt_exec(&bed, &running, ExecRequest { cwd, ..look }).await;
            assert!(!output.contains(SECRET), "{output}");
        }
        running.kill().await.expect("it ends");
        for name in ["etc", "work"] {
            restore(&spec.rootfs, name);
        }
        canary.assert_untouched("links of a container that was made again");
    }
    bed.finish().await;
}

/// Puts a directory back that its container was about to replace.
fn restore(rootfs: &Path, name: &str) {
    let (path, kept) = (rootfs.join(name), rootfs.join(format!("{name}-kept")));
    if path.is_symlink() {
        fs::remove_file(&path).expect("a link");
    }
    if kept.exists() {
        fs::rename(&kept, &path).expect("its name is free");
    }
}

/// Every file of the host that makes its kernel run a program, and what is in it.
fn helpers_of_the_kernel() -> BTreeMap<PathBuf, Option<String>> {
    let mut files: Vec<PathBuf> = ["core_pattern", "modprobe", "hotplug", "poweroff_cmd"]
        .map(|name| Path::new("/proc/sys/kernel").join(name))
        .into();
    files.push("/sys/kernel/uevent_helper".into());
    files.push("/proc/sys/fs/binfmt_misc/register".into());
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups are mounted");
    let agents = hierarchies.map(|entry| entry.expect("an entry").path().join("release_agent"));
    // With cgroup v2 these directories are cgroups that come and go, and have no such file.
    files.extend(agents.filter(|path| path.exists()));
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).ok())).collect()
}

pub async fn no_helper_of_the_kernel_is_replaced(bed: Bed) {
    let before = helpers_of_the_kernel();
    let script = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe \
             /sys/kernel/uevent_helper /proc/sys/kernel/hotplug /proc/sys/kernel/poweroff_cmd; do \
           echo '|/tmp/evil' > $f; mount -o remount,rw $f; echo '|/tmp/evil' > $f; done; \
         for kind in memory pids devices rdma; do mkdir -p /tmp/$kind; \
           mount -t cgroup -o $kind cgroup /tmp/$kind && echo MOUNTED; \
           unshare -U -r -m -C mount -t cgroup -o $kind cgroup /tmp/$kind && echo MOUNTED; \
           echo /tmp/evil > /tmp/$kind/release_agent; done; \
         mount -t cgroup2 none /tmp/memory && echo MOUNTED; \
         for f in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do \
           echo /tmp/evil > $f; done; true";
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    for output in [bed.output(script).await, attempt_exec(&bed, &running, shell(script)).await] {
        // What a sandbox's kernel mounts for itself is its own.
        assert!(!output.contains("MOUNTED") || bed.is_sandboxed(), "{output}");
        assert_eq!(helpers_of_the_kernel(), before, "{output}");
    }
    bed.finish().await;
}

pub async fn no_socket_or_descriptor_of_the_agent_is_inside(bed: Bed) {
    let look = "cat /proc/net/unix; for p in /proc/[0-9]*; do for f in $p/fd/*; do \
           echo fd $(basename $f) $(readlink $f); done; done 2>/dev/null; cat /proc/[0-9]*/cmdline";
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let own = bed.path().join("run").display().to_string();
    let socket = bed.path().join("run").join(running.id().as_str()).join("shim.sock");
    assert!(socket.exists(), "the shim listens");
    for output in [bed.output(look).await, attempt_exec(&bed, &running, shell(look)).await] {
        for word in ["shim.sock", "socket:", "longshore", own.as_str()] {
            assert!(!output.contains(word), "{word} in {output}");
        }
        // Of a shell, the program it substitutes, and the container's first.
        let numbers = output.lines().filter_map(|line| line.strip_prefix("fd "));
        let numbers = numbers.filter_map(|line| line.split(' ').next()?.parse::<u32>().ok());
        let high: Vec<_> = numbers.filter(|number| *number > 2).collect();
        assert!(high.iter().all(|number| *number == 10 || *number == 3), "{output}");
    }
    bed.finish().await;
}

/// A process of the host, ended with the test.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn processes_of_the_host_are_out_of_reach(bed: Bed) {
    let bystander = Command::new("/bin/sleep").arg("1000").env("CANARY", SECRET).spawn();
    let bystander = Bystander(bystander.expect("a process"));
    let neighbour = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let pids = [bystander.0.id().cast_signed(), neighbour.pid(), shim_of(&neighbour)];
    let list = pids.map(|pid| pid.to_string()).join(" ");
    let script = format!(
        "for pid in {list}; do kill -9 $pid; kill -9 -$pid; cat /proc/$pid/environ; \
           echo x > /proc/$pid/mem; ls /proc/$pid/root/; echo 1000 > /proc/$pid/oom_score_adj; \
         done; kill -9 0; kill -9 -1; echo over"
    );
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    for output in [bed.output(&script).await, attempt_exec(&bed, &running, shell(&script)).await] {
        assert!(!output.contains(SECRET), "{output}");
        for pid in pids.into_iter().chain([shim_of(&running)]) {
            assert!(is_alive(pid), "{pid}: {output}");
        }
    }
    bed.finish().await;
}
