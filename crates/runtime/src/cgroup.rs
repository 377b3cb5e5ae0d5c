//! The cgroups of an agent's instances, on v2, v1 and hybrid machines.
//!
//! Each instance has `<root>/<instance>/payload` for its container and `<root>/<instance>/shim` for
//! its shim, so that no limit of the one can stop the other. We make the directories and write the
//! limits ourselves, before the container exists, and the runtime only attaches the process. libcontainer
//! tries every v1 controller whether it is limited or not, runc the named hierarchies too, and on v1
//! both open more devices than an instance needs. On a hybrid machine the controllers are on v1, so it is treated as v1.

mod layout;

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use longshore_types::{ByteCount, InstanceId, Resources};
use rustix::process::{Pid, Signal, kill_process};

use layout::Layout;
pub use layout::{CgroupKind, CgroupProblem};

/// How long the kernel may take to end processes that were sent SIGKILL, and to let go of their
/// cgroup.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// The period over which the processor quota is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// What a shim may use of a core once its container runs, in microseconds of each period: a container
/// that floods its log must not get a core of its own that way. Its pipe slows it down instead.
const SHIM_QUOTA_US: u64 = 20_000;

/// The agent's part of the cgroup hierarchies.
#[derive(Debug, Clone)]
pub(crate) struct CgroupTree {
    layout: Layout,
    root: String,
}

/// The resources that an instance's container uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory in use, without page cache that the kernel can drop at once.
    pub memory: ByteCount,
    /// The most memory that was ever in use, page cache included, where the kernel keeps that.
    pub memory_peak: Option<ByteCount>,
    /// Processor time used since the start.
    pub cpu_time: Duration,
    /// Periods of 100 ms in which it wanted processor time.
    pub cpu_periods: u64,
    /// Those of them in which it wanted more than its limit.
    pub cpu_throttled: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl CgroupTree {
    /// Finds the hierarchies of this machine. `root` is the agent's cgroup, relative to the root of
    /// each hierarchy.
    pub fn probe(root: &str) -> Result<Self, CgroupProblem> {
        Ok(Self { layout: Layout::probe()?, root: root.trim_matches('/').to_owned() })
    }

    /// Which kind of hierarchy this machine has.
    pub fn kind(&self) -> CgroupKind {
        self.layout.kind()
    }

    /// Makes the agent's own cgroup and hands the controllers down to it.
    pub fn ensure_root(&self) -> Result<(), CgroupProblem> {
        self.layout.ensure_root(Path::new(&self.root))
    }

    /// Removes the agent's own cgroup where no instance is left in it.
    pub fn remove_root_if_empty(&self) {
        for dir in self.layout.every_directory(Path::new(&self.root)) {
            // Not empty means that an instance is left, which is what the name says.
            let _ = fs::remove_dir(dir);
        }
    }

    /// The cgroups of one instance, whether they exist or not.
    pub fn instance(&self, id: &InstanceId) -> InstanceCgroup {
        InstanceCgroup {
            layout: self.layout.clone(),
            path: Path::new(&self.root).join(id.as_str()),
        }
    }

    /// The names of all instances that have a cgroup.
    pub fn instances(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.layout.pids().join(&self.root))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }
}

/// The cgroups of one instance.
#[derive(Debug, Clone)]
pub(crate) struct InstanceCgroup {
    layout: Layout,
    path: PathBuf,
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), CgroupProblem> {
    let path = dir.join(file);
    fs::write(&path, value).map_err(|source| CgroupProblem::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

fn read_number(dir: &Path, file: &str) -> io::Result<u64> {
    let text = fs::read_to_string(dir.join(file))?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The number after `key` in a file of `key number` lines.
fn read_keyed(dir: &Path, file: &str, key: &str) -> io::Result<u64> {
    let text = fs::read_to_string(dir.join(file))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {key} in {file}")))
}

impl InstanceCgroup {
    fn payload(&self) -> PathBuf {
        self.path.join("payload")
    }

    fn shim(&self) -> PathBuf {
        self.path.join("shim")
    }

    /// The container's cgroup as an OCI runtime wants it.
    pub fn oci_path(&self) -> String {
        format!("/{}", self.payload().display())
    }

    /// Makes the cgroups and sets the limits of the container. Fails when any limit cannot be set.
    pub fn create(&self, limits: &Resources) -> Result<(), CgroupProblem> {
        self.layout.create(&self.path, &[&self.payload(), &self.shim()])?;
        let quota = (u64::from(limits.cpu.0) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US);
        let shares = (u64::from(limits.cpu.0) * 1024 / 1000).clamp(2, 262_144);
        let memory = limits.memory.0.to_string();
        let pids = self.layout.pids().join(self.payload());
        match &self.layout {
            Layout::V2 { .. } => {
                write(&pids, "memory.max", &memory)?;
                if pids.join("memory.swap.max").exists() {
                    write(&pids, "memory.swap.max", "0")?;
                }
                write(&pids, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
                let weight = 1 + (shares - 2) * 9_999 / 262_142;
                write(&pids, "cpu.weight", &weight.to_string())?;
            }
            Layout::V1(v1) => {
                let dir = v1.memory.join(self.payload());
                write(&dir, "memory.limit_in_bytes", &memory)?;
                if dir.join("memory.memsw.limit_in_bytes").exists() {
                    write(&dir, "memory.memsw.limit_in_bytes", &memory)?;
                }
                let dir = v1.cpu.join(self.payload());
                write(&dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                write(&dir, "cpu.cfs_quota_us", &quota.to_string())?;
                write(&dir, "cpu.shares", &shares.to_string())?;
            }
        }
        write(&pids, "pids.max", &limits.pids.to_string())
    }

    /// Moves this process into the shim's cgroup.
    pub fn enter_shim(&self) -> Result<(), CgroupProblem> {
        for dir in self.layout.limiting_directories(&self.shim()) {
            write(&dir, "cgroup.procs", "0")?;
        }
        Ok(())
    }

    /// Moves this process into the container's cgroup, for a runtime that leaves cgroups alone.
    pub fn enter_payload(&self) -> Result<(), CgroupProblem> {
        for dir in self.layout.plain_directories(&self.payload()) {
            layout::make(&dir)?;
            write(&dir, "cgroup.procs", "0")?;
        }
        Ok(())
    }

    /// Moves this process into the container's cgroup, so that what it uses is the container's.
    pub fn join_payload(&self) -> Result<(), CgroupProblem> {
        for dir in self.layout.limiting_directories(&self.payload()) {
            write(&dir, "cgroup.procs", "0")?;
        }
        Ok(())
    }

    /// Whether a process is in the container's cgroup.
    pub fn holds(&self, pid: Pid) -> io::Result<bool> {
        Ok(self.processes(&self.payload())?.contains(&pid))
    }

    /// Bounds the processor time of the shim, whose work for the start is done.
    pub fn bound_shim(&self) -> Result<(), CgroupProblem> {
        match &self.layout {
            Layout::V2 { mount } => {
                let quota = format!("{SHIM_QUOTA_US} {CPU_PERIOD_US}");
                write(&mount.join(self.shim()), "cpu.max", &quota)
            }
            Layout::V1(v1) => {
                let dir = v1.cpu.join(self.shim());
                write(&dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                write(&dir, "cpu.cfs_quota_us", &SHIM_QUOTA_US.to_string())
            }
        }
    }

    /// The directory in which access to devices is decided.
    pub fn devices_directory(&self) -> (CgroupKind, PathBuf) {
        (self.layout.kind(), self.layout.devices().join(self.payload()))
    }

    /// True while any cgroup of the instance exists.
    pub fn exists(&self) -> bool {
        self.layout.every_directory(&self.path).iter().any(|dir| dir.exists())
    }

    fn processes(&self, cgroup: &Path) -> io::Result<Vec<Pid>> {
        let file = self.layout.pids().join(cgroup).join("cgroup.procs");
        match fs::read_to_string(file) {
            Ok(text) => {
                Ok(text.lines().filter_map(|l| l.parse().ok().and_then(Pid::from_raw)).collect())
            }
            // ENODEV: the directory was removed while the file was open.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Ends the processes in the container that hang on nobody: their parent is outside, and is neither
    /// of these names. What they began is in their process group. The kernel ends what hangs on the
    /// embedded runtime's processes when they die; what another runtime began goes on.
    pub fn end_orphans(&self, parents: [&CStr; 2]) -> io::Result<()> {
        let inside = self.processes(&self.payload())?;
        for pid in &inside {
            let Some((parent, group)) = parent_and_group(*pid) else { continue };
            // A child of this agent copies files, and ends with its pipe.
            if inside.contains(&parent) || parent == rustix::process::getpid() {
                continue;
            }
            // A parent that cannot be read has just ended; the next look sees who took its place.
            let name = fs::read(format!("/proc/{}/comm", parent.as_raw_nonzero()));
            let known =
                |name: &[u8]| parents.iter().any(|known| known.to_bytes() == name.trim_ascii());
            if name.is_ok_and(|name| !known(&name)) {
                // Both may have ended since.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                let _ = kill_process(*pid, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Ends every process of the container and waits until all are gone. On v1 a process that forks
    /// in between is met in the next round; the container's first process is among the first killed,
    /// and with it the kernel ends its whole process namespace, so the rounds are few.
    pub fn kill_payload(&self) -> Result<(), CgroupProblem> {
        self.kill(&self.payload())
    }

    /// Ends the shim.
    pub fn kill_shim(&self) -> Result<(), CgroupProblem> {
        self.kill(&self.shim())
    }

    fn kill(&self, cgroup: &Path) -> Result<(), CgroupProblem> {
        let kill_file = self.layout.pids().join(cgroup).join("cgroup.kill");
        let deadline = Instant::now() + END_DEADLINE;
        let mut pause = Duration::from_micros(200);
        loop {
            let processes = self
                .processes(cgroup)
                .map_err(|source| CgroupProblem::Read { path: cgroup.to_owned(), source })?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupProblem::StillBusy { path: cgroup.to_owned() });
            }
            let whole = kill_file.exists() && fs::write(&kill_file, "1").is_ok();
            if !whole {
                for process in processes {
                    // It may have ended since it was listed.
                    let _ = kill_process(process, Signal::KILL);
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// How many processes of the container the kernel ended for want of memory.
    pub fn oom_kills(&self) -> io::Result<u64> {
        match &self.layout {
            Layout::V2 { mount } => {
                read_keyed(&mount.join(self.payload()), "memory.events", "oom_kill ")
            }
            Layout::V1(v1) => {
                read_keyed(&v1.memory.join(self.payload()), "memory.oom_control", "oom_kill ")
            }
        }
    }

    /// The most memory that the container ever used; absent on kernels that do not keep it.
    pub fn memory_peak(&self) -> io::Result<Option<ByteCount>> {
        let peak = match &self.layout {
            Layout::V2 { mount } => read_number(&mount.join(self.payload()), "memory.peak"),
            Layout::V1(v1) => {
                read_number(&v1.memory.join(self.payload()), "memory.max_usage_in_bytes")
            }
        };
        match peak {
            Ok(peak) => Ok(Some(ByteCount(peak))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the container uses now.
    pub fn usage(&self) -> io::Result<Usage> {
        let pids = self.layout.pids().join(self.payload());
        let (used, cache, cpu_time, cpu) = match &self.layout {
            Layout::V2 { .. } => (
                read_number(&pids, "memory.current")?,
                read_keyed(&pids, "memory.stat", "inactive_file ")?,
                Duration::from_micros(read_keyed(&pids, "cpu.stat", "usage_usec ")?),
                pids.clone(),
            ),
            Layout::V1(v1) => {
                let memory = v1.memory.join(self.payload());
                let cpuacct = v1.cpuacct.as_ref().map(|mount| mount.join(self.payload()));
                let used = cpuacct.map(|dir| read_number(&dir, "cpuacct.usage")).transpose()?;
                (
                    read_number(&memory, "memory.usage_in_bytes")?,
                    read_keyed(&memory, "memory.stat", "total_inactive_file ")?,
                    Duration::from_nanos(used.unwrap_or(0)),
                    v1.cpu.join(self.payload()),
                )
            }
        };
        Ok(Usage {
            memory: ByteCount(used.saturating_sub(cache)),
            memory_peak: self.memory_peak()?,
            cpu_time,
            cpu_periods: read_keyed(&cpu, "cpu.stat", "nr_periods ")?,
            cpu_throttled: read_keyed(&cpu, "cpu.stat", "nr_throttled ")?,
            pids: read_number(&pids, "pids.current")?,
        })
    }

    /// Removes the cgroups, in which nothing may run any more. Does nothing when they are gone.
    pub fn remove(&self) -> Result<(), CgroupProblem> {
        for path in [self.payload(), self.shim(), self.path.clone()] {
            for dir in self.layout.every_directory(&path) {
                remove_directory(&dir)?;
            }
        }
        Ok(())
    }
}

/// The parent and the process group of a process, unless it has ended.
fn parent_and_group(pid: Pid) -> Option<(Pid, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ').skip(1);
    let mut number = || Pid::from_raw(fields.next()?.parse().ok()?);
    Some((number()?, number()?))
}

/// A process that was reaped leaves its cgroup a moment later, so the kernel may call it busy.
fn remove_directory(dir: &Path) -> Result<(), CgroupProblem> {
    let deadline = Instant::now() + END_DEADLINE;
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            Err(source) => return Err(CgroupProblem::Remove { path: dir.to_owned(), source }),
        }
    }
}
