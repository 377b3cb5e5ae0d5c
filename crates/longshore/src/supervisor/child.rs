//! One role, kept running until it is told to end.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use longshore_link::Listener;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child as Process, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::home::Home;
use crate::inheritance::{Bequest, LifeLine};

/// How one role is started.
#[derive(Debug)]
pub struct RolePlan {
    /// The verb of our own program that it is.
    pub role: &'static str,
    /// Its flags.
    pub args: Vec<String>,
    /// The sockets it serves, by the name under which it looks for them.
    pub sockets: Vec<(&'static str, Listener)>,
    /// How long it may take to end when told to, before it is killed.
    pub drain: Duration,
}

/// What all roles have in common.
#[derive(Debug)]
pub struct Surroundings {
    /// Our own program.
    pub exe: std::path::PathBuf,
    /// The directories, whose hold every role shares.
    pub home: Home,
    /// Tells the roles when this process is gone.
    pub life_line: LifeLine,
    /// Variables that roles have beside those of the supervisor: what is logged and how, and where
    /// traces go.
    pub variables: Vec<(&'static str, String)>,
    /// Cancelled to end everything at once, without draining.
    pub kill: CancellationToken,
}

/// A role that is kept running.
#[derive(Debug)]
pub struct Child {
    role: &'static str,
    stop: CancellationToken,
    deaths: watch::Receiver<u32>,
    task: tokio::task::JoinHandle<()>,
}

impl Child {
    /// Starts the role of `plan`, again and again when it dies.
    pub fn keep_running(plan: RolePlan, surroundings: Arc<Surroundings>) -> Self {
        let stop = CancellationToken::new();
        let (report, deaths) = watch::channel(0);
        let role = plan.role;
        let keeper = Keeper { plan, surroundings, stop: stop.clone(), report };
        Self { role, stop, deaths, task: tokio::spawn(keeper.run()) }
    }

    /// The role.
    pub fn role(&self) -> &'static str {
        self.role
    }

    /// How often in a row it died early, for a person who wonders why nothing is ready.
    pub fn n_deaths(&self) -> u32 {
        *self.deaths.borrow()
    }

    /// Tells the role to end and waits until it has.
    pub async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(role = self.role, %error, "the keeper of a role failed");
        }
    }
}

struct Keeper {
    plan: RolePlan,
    surroundings: Arc<Surroundings>,
    stop: CancellationToken,
    report: watch::Sender<u32>,
}

impl Keeper {
    async fn run(self) {
        let role = self.plan.role;
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            match self.spawn() {
                Ok(mut process) => {
                    let ended = tokio::select! {
                        ended = process.wait() => ended,
                        () = self.stop.cancelled() => return self.end(process).await,
                    };
                    tracing::warn!("{role} ended: {}", in_words(ended));
                }
                Err(error) => tracing::error!(%error, "cannot start {role}"),
            }
            let wait = backoff.after_death(began.elapsed());
            self.report.send_replace(backoff.n_deaths());
            if !wait.is_zero() {
                tracing::warn!("{role} is started again in {wait:?}");
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn spawn(&self) -> io::Result<Process> {
        let Surroundings { exe, home, life_line, variables, kill: _ } = &*self.surroundings;
        let mut command = Command::new(exe);
        command
            .arg(self.plan.role)
            .args(&self.plan.args)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C on the terminal is for the supervisor, which ends the roles in their order.
            .process_group(0);
        let sockets = self.plan.sockets.iter();
        let bequest = Bequest {
            life_line,
            hold: Some(home.hold()),
            sockets: sockets.map(|(name, socket)| (*name, descriptor(socket))).collect(),
        };
        bequest.give(&mut command);
        command.spawn()
    }

    /// Ends the role: by asking, and after its time by force.
    async fn end(&self, mut process: Process) {
        let role = self.plan.role;
        ask_to_end(&process);
        let ended = tokio::select! {
            ended = timeout(self.plan.drain, process.wait()) => ended.ok(),
            () = self.surroundings.kill.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                tracing::warn!("{role} does not end; killing it");
                match process.kill().await {
                    Ok(()) => process.wait().await,
                    Err(error) => Err(error),
                }
            }
        };
        match ended {
            Ok(status) if status.success() => tracing::debug!("{role} ended"),
            ended => tracing::warn!("{role} ended: {}", in_words(ended)),
        }
    }
}

/// Sends SIGTERM. The process was not waited for yet, so its number is still its own.
pub fn ask_to_end(process: &Process) {
    let pid = process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
        tracing::warn!(%error, "cannot signal a process");
    }
}

fn in_words(ended: io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => format!("its end is not known: {error}"),
    }
}

fn descriptor(socket: &Listener) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsFd;
    match socket {
        Listener::Unix(socket, _) => socket.as_fd(),
        Listener::Tcp(socket) | Listener::Tls(socket) => socket.as_fd(),
    }
}

#[cfg(test)]
mod tests;
