//! A runtime that is another program, driven by the standard OCI command line.
//!
//! Every command is a child of this process, waited for, with no descriptor of ours but the output of
//! the container, and ends when this process ends. What a command leaves running becomes a child of this
//! process, which is the reaper of its descendants: so it learns the end of the container, or of an
//! exec, from the kernel, as with the embedded runtime. All that the runtime keeps is below the
//! instance's run directory and goes with it, so nothing depends on `delete` being called: the shim
//! may be killed, and the container with its cgroup.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::MountFlags;
use rustix::process::Pid;
use serde::Deserialize;
use serde_json::{Value, json};

use super::particulars::{Filter, First, Particulars, Placement};
use super::run_files::{RunFiles, write};
use super::shown::Shown;
use super::terminal::Console;
use super::{Driver, DriverProblem, Entered, ProcessPlan, Streams, TerminalPlan, applied, lookup};
use crate::SignalNumber;
use crate::cgroup::InstanceCgroup;
use crate::oci;
use crate::process::{self, PATH, end_with_parent, wait_within};
use crate::seccomp::{self, Kernel};
use crate::spec::{ContainerSpec, ReadOnlyFile};
use crate::view;

/// How long a start may take; the agent waits a little longer.
const START_DEADLINE: Duration = Duration::from_secs(50);
/// How long sending a signal may take, while which the shim does nothing else.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct CommandLine {
    particulars: &'static Particulars,
    program: PathBuf,
    id: String,
    rootfs: PathBuf,
    shown: Vec<ReadOnlyFile>,
    /// The container's root on the machine.
    root: u32,
    cgroup: InstanceCgroup,
    files: RunFiles,
    /// The first process.
    created: Option<Pid>,
    /// Inside a sandbox, the process that an exec began.
    inside: Option<PathBuf>,
}

/// A line of a runtime's log.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    msg: String,
}

impl CommandLine {
    /// `dir` is the instance's run directory.
    pub fn new(
        (particulars, program): (&'static Particulars, &Path),
        spec: &ContainerSpec,
        dir: &Path,
        cgroup: InstanceCgroup,
    ) -> Self {
        Self {
            particulars,
            program: program.to_owned(),
            id: spec.id.to_string(),
            rootfs: spec.rootfs.clone(),
            shown: spec.files.clone(),
            root: spec.users.as_ref().map_or(0, |users| users.ids.first()),
            cgroup,
            files: RunFiles::new(dir),
            created: None,
            inside: None,
        }
    }

    /// A file of this process alone: several execs may run at once.
    fn own_file(&self, name: &str) -> PathBuf {
        self.files.bundle.join(format!("{name}-{}", std::process::id()))
    }

    /// Where `/dev` is made for a runtime that is given it.
    fn dev(&self) -> PathBuf {
        self.files.bundle.join("dev")
    }

    fn prepare(&self) -> Result<(), DriverProblem> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| DriverProblem::Pipe(errno.into()))?;
        self.files.make()
    }

    /// The configuration with what the embedded runtime does itself.
    fn config(&self, document: &Value) -> Value {
        let mut config = document.clone();
        let kernel = match self.particulars.first {
            First::Sandbox => Kernel::OfTheRuntime,
            First::Program => Kernel::Machines,
        };
        config["linux"]["seccomp"] = seccomp::section(kernel);
        if self.particulars.given_dev
            && let Some(mounts) = config["mounts"].as_array_mut()
        {
            let is_in_dev = |mount: &Value| {
                mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev"))
            };
            mounts.retain(|mount| !is_in_dev(mount));
            let source = self.dev();
            mounts.push(json!({
                "destination": "/dev", "type": "bind", "source": source, "options": ["rbind"],
            }));
        }
        if self.particulars.placement == Placement::Command
            && let Some(linux) = config["linux"].as_object_mut()
        {
            linux.remove("cgroupsPath");
        }
        config
    }

    fn command(&self, log: &Path, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(self.particulars.options)
            .arg("--root")
            .arg(&self.files.state)
            .arg("--log")
            .arg(log)
            .arg(verb)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: this process has one thread, so its child may do whatever it could do itself.
        unsafe { command.pre_exec(on_its_own) };
        command
    }

    /// Makes the command start inside the container's cgroup where that is ours to do.
    fn place(&self, command: &mut Command) {
        if self.particulars.placement == Placement::Command {
            let cgroup = self.cgroup.clone();
            // SAFETY: as above.
            unsafe { command.pre_exec(move || cgroup.enter_payload().map_err(io::Error::other)) };
        }
    }

    /// Runs a command to its end; on failure what it logged is the reason.
    fn run(
        &self,
        doing: &'static str,
        log: &Path,
        deadline: Duration,
        command: &mut Command,
    ) -> Result<(), DriverProblem> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DriverProblem::Runtime {
            doing,
            source,
        };
        let ended = command.spawn().and_then(|mut child| wait_within(&mut child, deadline));
        let status = ended.map_err(|error| failed(Box::new(error)));
        let said = last_words(log);
        // It has been read; a leftover would go with the run directory.
        let _ = fs::remove_file(log);
        let status = status?;
        if status.success() {
            return Ok(());
        }
        let name = self.program.display();
        let said = said.unwrap_or_else(|| format!("{name} ended without a word: {status}"));
        Err(failed(said.into()))
    }

    /// Refuses a process whose program cannot be run.
    fn check(&self, process: &Value) -> Result<(), DriverProblem> {
        let texts = |key: &str| -> Vec<&str> {
            process[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let cwd = process["cwd"].as_str().unwrap_or("/");
        lookup::check(&self.rootfs, &texts("args"), &texts("env"), cwd)
            .map_err(DriverProblem::Workload)
    }

    fn attach(command: &mut Command, streams: Streams) {
        command.stdin(streams.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(streams.stdout).stderr(streams.stderr);
    }

    /// Tells a command to make a terminal, if one is asked for, and where to hand it over.
    fn console(
        &self,
        command: &mut Command,
        terminal: Option<TerminalPlan>,
    ) -> Result<Option<Console>, DriverProblem> {
        let Some(terminal) = terminal else { return Ok(None) };
        let console = Console::listen(self.own_file("console"), terminal);
        let console = console.map_err(DriverProblem::Terminal)?;
        command.arg("--console-socket").arg(console.address());
        Ok(Some(console))
    }

    /// The master that a command has handed over.
    fn taken(&self, console: Option<Console>) -> Result<Option<OwnedFd>, DriverProblem> {
        let taken = console.map(|console| console.take(self.particulars.first)).transpose();
        taken.map_err(DriverProblem::Terminal)
    }

    /// Ends a process inside a sandbox with all that it began. It is another kernel's, so that kernel
    /// is asked; whatever is missed ends with the container.
    fn end_inside(&self, first: i32) -> Result<(), DriverProblem> {
        let log = self.own_file("end.log");
        let mut ps = self.command(&log, "ps");
        ps.args(["--format", "table", &self.id]).stdout(Stdio::piped());
        let output = ps.output().map_err(DriverProblem::Pipe)?;
        let listed = listed_processes(&String::from_utf8_lossy(&output.stdout));
        let mut ours = vec![first];
        let mut idx = 0;
        while idx < ours.len() {
            let children = listed.iter().filter(|(_, parent)| *parent == ours[idx]);
            ours.extend(children.map(|(pid, _)| *pid).collect::<Vec<_>>());
            idx += 1;
        }
        for pid in ours.iter().rev() {
            let mut kill = self.command(&log, "kill");
            kill.args(["--pid", &pid.to_string(), &self.id, "KILL"]);
            // It may have ended since it was listed.
            let _ = self.run("ending a process", &log, SIGNAL_DEADLINE, &mut kill);
        }
        Ok(())
    }
}

/// The numbers of the processes that `ps` lists, and of their parents: its form in JSON has no
/// parents. The columns begin with user, process and parent.
fn listed_processes(table: &str) -> Vec<(i32, i32)> {
    let row = |line: &str| {
        let mut columns = line.split_whitespace().skip(1).map(str::parse);
        Some((columns.next()?.ok()?, columns.next()?.ok()?))
    };
    table.lines().filter_map(row).collect()
}

/// The last error in a runtime's log.
fn last_words(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let lines = serde_json::Deserializer::from_str(&text).into_iter::<LogLine>();
    let errors = lines.map_while(Result::ok).filter(|line| line.level != "warning");
    errors.last().map(|line| line.msg)
}

/// Ends with its parent, and leads a session: not every runtime makes one for the container's processes,
/// which would be in ours otherwise, where they could signal us.
fn on_its_own() -> io::Result<()> {
    end_with_parent()?;
    rustix::process::setsid()?;
    Ok(())
}

/// Lays an empty directory over a path, seen by this process and its children alone.
fn hide(path: &str) -> io::Result<()> {
    view::unshare_mounts()?;
    rustix::mount::mount("none", path, "tmpfs", MountFlags::RDONLY, None::<&std::ffi::CStr>)?;
    Ok(())
}

fn read_pid(path: &Path) -> Result<Pid, DriverProblem> {
    let text = fs::read_to_string(path)
        .map_err(|source| DriverProblem::Prepare { path: path.to_owned(), source })?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| DriverProblem::Workload(format!("the runtime named no process: {text:?}")))
}

impl Driver for CommandLine {
    fn create(
        &mut self,
        plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem> {
        self.check(&plan.document["process"])?;
        self.prepare()?;
        write(&self.files.config(), &self.config(plan.document))?;
        let (log, pid_file) = (self.own_file("create.log"), self.own_file("pid"));
        let mut command = self.command(&log, "create");
        command.arg("--bundle").arg(&self.files.bundle).arg("--pid-file").arg(&pid_file);
        let console = self.console(&mut command, terminal)?;
        command.arg(&self.id);
        self.place(&mut command);
        let dev = self.particulars.given_dev.then(|| (self.dev(), self.root));
        let shown = Shown::open(&self.rootfs, &self.shown, dev)?;
        // SAFETY: this process has one thread, so its child may do whatever it could do itself.
        unsafe { command.pre_exec(move || shown.attach()) };
        Self::attach(&mut command, plan.streams);
        self.run("making the container", &log, START_DEADLINE, &mut command)?;
        let pid = read_pid(&pid_file)?;
        self.created = Some(pid);
        let mut expected = match self.particulars.first {
            First::Program => applied::rights(oci::effective_bits(plan.user)),
            // Those of its processes it keeps itself.
            First::Sandbox => Vec::new(),
        };
        expected.extend((self.particulars.filter == Filter::Made).then(applied::filter));
        applied::verify(pid, &expected).map_err(DriverProblem::Workload)?;
        Ok(Entered { pid, terminal: self.taken(console)? })
    }

    fn start(&mut self) -> Result<(), DriverProblem> {
        let pid = self.created.ok_or_else(|| {
            DriverProblem::Workload("the container was started before it was made".to_owned())
        })?;
        let log = self.own_file("start.log");
        let mut command = self.command(&log, "start");
        command.arg(&self.id);
        if let Some(path) = self.particulars.hidden {
            // SAFETY: this process has one thread, so its child may do whatever it could do itself.
            unsafe { command.pre_exec(move || hide(path)) };
        }
        self.run("starting the container", &log, START_DEADLINE, &mut command)?;
        match self.particulars.filter {
            Filter::Made => Ok(()),
            Filter::Started => {
                applied::verify(pid, &[applied::filter()]).map_err(DriverProblem::Workload)
            }
        }
    }

    fn exec(
        &mut self,
        plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem> {
        self.check(plan.document)?;
        self.prepare()?;
        let document = self.own_file("exec.json");
        match terminal {
            None => write(&document, plan.document)?,
            Some(terminal) => write(&document, &oci::in_terminal(plan.document, terminal.size))?,
        }
        let (log, pid_file) = (self.own_file("exec.log"), self.own_file("exec-pid"));
        let mut command = self.command(&log, "exec");
        command.arg("--detach").arg("--process").arg(&document).arg("--pid-file").arg(&pid_file);
        if self.particulars.first == First::Sandbox {
            let inside = self.own_file("exec-inside");
            command.arg("--internal-pid-file").arg(&inside);
            self.inside = Some(inside);
        } else {
            self.place(&mut command);
        }
        let console = self.console(&mut command, terminal)?;
        command.arg(&self.id);
        Self::attach(&mut command, plan.streams);
        let run = self.run("entering the container", &log, START_DEADLINE, &mut command);
        let pid = run.and_then(|()| read_pid(&pid_file));
        let entered = pid.and_then(|pid| Ok(Entered { pid, terminal: self.taken(console)? }));
        for file in [&document, &pid_file] {
            // They have been read; leftovers would go with the run directory.
            let _ = fs::remove_file(file);
        }
        entered
    }

    fn signal(&self, pidfd: &OwnedFd, signal: SignalNumber) -> io::Result<()> {
        if self.particulars.first == First::Program || signal == SignalNumber::KILL {
            return process::send_signal(pidfd, signal);
        }
        let log = self.own_file("kill.log");
        let mut command = self.command(&log, "kill");
        command.args([self.id.as_str(), &signal.get().to_string()]);
        self.run("sending a signal", &log, SIGNAL_DEADLINE, &mut command).map_err(io::Error::other)
    }

    fn signal_exec(&self, pid: Pid, signal: SignalNumber) -> io::Result<()> {
        let Some(file) = &self.inside else { return process::signal_group_of(pid, signal) };
        let inside = read_pid(file).map_err(io::Error::other)?.as_raw_nonzero().to_string();
        let log = self.own_file("kill.log");
        let mut command = self.command(&log, "kill");
        command.args(["--pid", &inside, &self.id, &signal.get().to_string()]);
        self.run("sending a signal", &log, SIGNAL_DEADLINE, &mut command).map_err(io::Error::other)
    }

    fn end_exec(&self, pid: Pid) -> io::Result<()> {
        if let Some(file) = &self.inside
            && let Ok(inside) = read_pid(file)
        {
            self.end_inside(inside.as_raw_nonzero().get()).map_err(io::Error::other)?;
        }
        process::end_session_of(pid)
    }

    fn delete(&mut self) -> Result<(), DriverProblem> {
        self.created = None;
        self.files.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandboxs_processes_are_read_with_their_parents() {
        let table = "UID  PID  PPID C TTY STIME TIME CMD\n0  1  0  0  ?  12:00  0s  sleep\n\
                     0  12  1  0  ?  12:00  10ms  sh -c 1 2\n";
        assert_eq!(listed_processes(table), [(1, 0), (12, 1)]);
        assert_eq!(listed_processes(""), []);
    }

    #[test]
    fn the_last_error_of_a_log_is_its_word() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text = r#"{"level":"warning","msg":"odd"}
{"level":"error","msg":"first"}{"msg":"second \"x\"","level":"error","time":"t"}
{"level":"warning","msg":"late"}"#;
        fs::write(&log, text).unwrap();
        assert_eq!(last_words(&log).as_deref(), Some("second \"x\""));
        fs::write(&log, "").unwrap();
        assert_eq!(last_words(&log), None);
    }
}
