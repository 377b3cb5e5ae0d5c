//! The machines of a world while they run: on each a supervisor, which is started again when it dies, as
//! an init would.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use longshore_world::{Carrier, Machine, MachineError, Subnet};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::plan::WorldPlan;
use crate::inheritance::{Bequest, LifeLine};
use crate::supervisor::ask_to_end;

/// Longer than all that a supervisor gives its roles, one after the other.
pub const END: Duration = Duration::from_secs(180);
/// Between the death of a supervisor and its next start.
const START_AGAIN: Duration = Duration::from_millis(500);
/// What of a log is shown when something fails.
const LOG_LINES: usize = 20;

/// What there is for as long as the world runs. What the kernel gave goes with it.
#[derive(Debug)]
pub struct Machines {
    /// What moves their packets.
    pub carrier: Carrier,
    /// Which there are.
    pub plan: WorldPlan,
    machines: Vec<Machine>,
    states: Vec<State>,
    exe: PathBuf,
    dir: PathBuf,
    life_line: LifeLine,
    /// Locked, and shared with the supervisors.
    hold: File,
    /// Whether one of them did not end in order.
    is_untidy: AtomicBool,
    /// Given back last, when nothing has its addresses and names any more.
    pub subnet: Subnet,
}

#[derive(Debug, Default)]
struct State {
    /// The supervisor; 0 while there is none.
    pid: AtomicU32,
    n_deaths: AtomicU32,
}

/// What the machines have from whoever makes them.
pub struct Made {
    /// What moves their packets.
    pub carrier: Carrier,
    /// They themselves, this machine last.
    pub machines: Vec<Machine>,
    /// Their addresses.
    pub subnet: Subnet,
    /// Our own program.
    pub exe: PathBuf,
    /// Locked.
    pub hold: File,
}

impl Machines {
    /// The machines of a plan, on which nothing runs yet.
    pub fn new(plan: WorldPlan, dir: &Path, made: Made) -> io::Result<Self> {
        let Made { carrier, machines, subnet, exe, hold } = made;
        let states = plan.machines.iter().map(|_| State::default()).collect();
        let life_line = LifeLine::new()?;
        let (dir, is_untidy) = (dir.to_owned(), AtomicBool::new(false));
        Ok(Self { carrier, plan, machines, states, exe, dir, life_line, hold, is_untidy, subnet })
    }

    /// Keeps the supervisor of a machine running: first by this command line, and from then on by the other.
    pub async fn keep_running(
        &self,
        machine: usize,
        (first, again): (Vec<String>, Vec<String>),
        end: CancellationToken,
    ) -> io::Result<()> {
        let mut line = first;
        let state = &self.states[machine];
        while !end.is_cancelled() {
            let mut process = self.spawn(machine, &line)?;
            state.pid.store(process.id().unwrap_or_default(), Ordering::Relaxed);
            tokio::select! {
                status = process.wait() => {
                    let status = status?;
                    state.n_deaths.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(machine = self.plan.machines[machine].name, %status, "ended");
                }
                () = end.cancelled() => self.end(process).await?,
            }
            state.pid.store(0, Ordering::Relaxed);
            line.clone_from(&again);
            end.run_until_cancelled(sleep(START_AGAIN)).await;
        }
        Ok(())
    }

    /// Ends a supervisor with all that it runs.
    async fn end(&self, mut process: Child) -> io::Result<()> {
        ask_to_end(&process);
        match timeout(END, process.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => {}
            Ok(_) => self.is_untidy.store(true, Ordering::Relaxed),
            Err(_) => {
                self.is_untidy.store(true, Ordering::Relaxed);
                process.kill().await?;
            }
        }
        Ok(())
    }

    fn spawn(&self, machine: usize, line: &[String]) -> io::Result<Child> {
        let name = &self.plan.machines[machine].name;
        let log = open_log(&self.dir.join(name))?;
        let mut command = Command::new(&self.exe);
        command
            .args(line)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the world, which ends its machines in order.
            .process_group(0);
        let hold = Some(self.hold.as_fd());
        Bequest { life_line: &self.life_line, hold, sockets: Vec::new() }.give(&mut command);
        on_machine(&mut command, self.machines[machine].network());
        command.spawn()
    }

    /// Does something on a machine.
    pub fn within<T: Send>(
        &self,
        machine: usize,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, MachineError> {
        self.machines[machine].within(work)
    }

    /// The supervisor of a machine, while there is one.
    pub fn pid(&self, machine: usize) -> Option<u32> {
        let pid = self.states[machine].pid.load(Ordering::Relaxed);
        (pid != 0).then_some(pid)
    }

    /// How often the supervisor of a machine has ended by itself.
    pub fn n_deaths(&self, machine: usize) -> u32 {
        self.states[machine].n_deaths.load(Ordering::Relaxed)
    }

    /// Whether something may be left that the next start has to look for.
    pub fn is_untidy(&self) -> bool {
        self.is_untidy.load(Ordering::Relaxed)
    }

    /// Where everything of a machine is kept.
    pub fn dir_of(&self, machine: usize) -> PathBuf {
        self.dir.join(&self.plan.machines[machine].name)
    }

    /// The last that a machine said, for a person whose world failed.
    pub fn log_tail(&self, machine: usize) -> String {
        let text = std::fs::read_to_string(log_path(&self.dir_of(machine))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let name = &self.plan.machines[machine].name;
        format!("The last lines of {name}:\n  {}", tail.join("\n  "))
    }
}

/// Where a machine with this directory logs.
fn log_path(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Opens that, and makes the directory.
pub fn open_log(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(log_path(dir))
}

/// Makes `command` start its program in another network.
pub fn on_machine(command: &mut Command, network: BorrowedFd<'_>) {
    let network = network.as_raw_fd();
    let enter = move || {
        // SAFETY: between fork and exec the child has every descriptor of the parent, which holds this one
        // open while it spawns.
        let network = unsafe { BorrowedFd::borrow_raw(network) };
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        Ok(())
    };
    // SAFETY: the closure makes a system call only; it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}
