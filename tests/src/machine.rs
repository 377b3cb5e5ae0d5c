//! Another machine, as far as the network tells: a namespace behind a link, in which a node can join.

use std::fs::{self, OpenOptions, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::debian::newer_path;
use crate::image::checked;
use crate::leaks::{self, Marks};
use crate::platform::{Instances, Platform, binary};
use crate::process::{Process, signal};
use crate::wait::eventually;

/// A machine. Dropping it ends its node with all instances and takes the namespace away;
/// [`Machine::finish`] checks besides that nothing was left behind.
pub struct Machine {
    dir: TempDir,
    /// The namespace, and in part the name of the link.
    name: String,
    /// The block of four addresses: this side's is the first, the machine's the second.
    network: u32,
    node: Option<Child>,
}

impl Machine {
    /// Makes one that can be reached at [`Self::address`], and reaches [`Self::gateway`].
    pub fn start() -> Result<Self> {
        let builder = &mut tempfile::Builder::new();
        builder.prefix("lsm-").permissions(Permissions::from_mode(0o711));
        let dir = builder.tempdir()?;
        fs::create_dir(dir.path().join("home"))?;
        let unique = std::process::id() % 10_000;
        // Of the network for measurements, the half that no other test uses.
        let network = u32::from(Ipv4Addr::new(198, 19, 0, 0)) + unique * 4 % 65_536;
        let machine = Self { dir, name: format!("lsm{unique}"), network, node: None };
        machine.connect()?;
        Ok(machine)
    }

    fn connect(&self) -> Result<()> {
        let Self { name, .. } = self;
        let (outer, inner) = (format!("{name}o"), format!("{name}i"));
        let (gateway, address) =
            (format!("{}/30", self.gateway()), format!("{}/30", self.address()));
        let via = self.gateway().to_string();
        let steps: [&[&str]; 8] = [
            &["netns", "add", name],
            &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", name],
            &["address", "add", &gateway, "dev", &outer],
            &["link", "set", &outer, "up"],
            &["-netns", name, "address", "add", &address, "dev", &inner],
            &["-netns", name, "link", "set", &inner, "up"],
            &["-netns", name, "link", "set", "lo", "up"],
            &["-netns", name, "route", "add", "default", "via", &via],
        ];
        steps.iter().try_for_each(|step| checked(Command::new("ip").args(*step)).map(drop))
    }

    /// This side's address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// The machine's.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 2)
    }

    /// Cuts the link, or mends it.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        let link = format!("{}o", self.name);
        checked(Command::new("ip").args(["link", "set", &link, state])).map(drop)
    }

    /// The program with these arguments, on that machine.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(binary()?)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path().join("home"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Joins with a token, and runs the node until it is stopped.
    pub fn join(&mut self, token: &str, name: &str) -> Result<()> {
        self.run(&["node", "join", token, "--name", name], Instances::Keep)
    }

    /// Runs the node that joined.
    pub fn start_node(&mut self, instances: Instances) -> Result<()> {
        self.run(&["node", "start"], instances)
    }

    fn run(&mut self, verb: &[&str], instances: Instances) -> Result<()> {
        ensure!(self.node.is_none(), "the node runs already");
        let text = |path: PathBuf| path.display().to_string();
        let (data, run) = (text(self.dir.path().join("data")), text(self.dir.path().join("run")));
        let runsc = text(newer_path("runsc"));
        let mut arguments = verb.to_vec();
        arguments.extend(["--data-dir", &data, "--run-dir", &run, "--runsc", &runsc]);
        if instances == Instances::Stop {
            arguments.push("--stop-instances");
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let from = log.metadata()?.len();
        let mut command = self.command(&arguments)?;
        let node = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let node = self.node.insert(node);
        let path = self.dir.path().join("node.log");
        eventually("the node runs", || {
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log[usize::try_from(from)?..]).into_owned();
            if let Some(status) = node.try_wait()? {
                anyhow::bail!("it ended: {status}\n{log}");
            }
            Ok(log.contains(" runs for ").then_some(()))
        })
    }

    /// Asks the node to end, and waits until it has.
    pub fn stop_node(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node does not run")?;
        signal(node.id().cast_signed(), Signal::TERM)?;
        let status = eventually("the node ends", || Ok(node.try_wait()?))?;
        ensure!(status.success(), "the node ended: {status}\n{}", self.log());
        Ok(())
    }

    /// Kills the agent, which its supervisor starts again.
    pub fn kill_agent(&self) -> Result<()> {
        let supervisor = self.node.as_ref().context("the node does not run")?.id().cast_signed();
        let all = Process::all()?;
        let agent = all.iter().find(|process| process.parent == supervisor);
        agent.context("no agent")?.kill()
    }

    /// What the node wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("node.log")
    }

    /// By what its own things are known.
    pub fn marks(&self) -> Marks {
        let agent = fs::read_to_string(self.dir.path().join("data/node/agent-id")).ok();
        let agent = agent.map(|agent| agent.trim().to_owned());
        Marks { dir: self.dir.path().display().to_string(), agent }
    }

    /// Ends the node with all its instances and checks that nothing is left of it.
    ///
    /// # Panics
    /// When something is left.
    pub fn finish(mut self) {
        let marks = self.marks();
        self.end().expect("the node ends");
        let leaks = eventually("nothing is left", || {
            let leaks = leaks::find(&marks);
            ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
            Ok(Some(()))
        });
        leaks.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    fn end(&mut self) -> Result<()> {
        if self.node.is_some() {
            self.stop_node()?;
        }
        if self.dir.path().join("data/secrets/identity.json").exists() {
            self.start_node(Instances::Stop)?;
            self.stop_node()?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let marks = self.marks();
        if std::thread::panicking() {
            eprintln!("the machine wrote:\n{}", self.log());
        }
        if !leaks::find(&marks).is_empty() {
            if let Err(error) = self.end() {
                eprintln!("the node does not end: {error:#}");
            }
            if let Some(mut node) = self.node.take() {
                let _ = node.kill();
                let _ = node.wait();
            }
            for process in Process::all().unwrap_or_default() {
                if process.mentions(&marks.dir) {
                    let _ = process.kill();
                }
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = Command::new("ip").args(["link", "del", &format!("{}o", self.name)]).output();
    }
}

/// A platform whose location listens for nodes on the link to a machine.
pub fn platform_for(machine: &Machine, mut options: crate::UpOptions) -> Result<Platform> {
    let port = 10_000 + std::process::id() % 20_000;
    options.config.push_str(&format!("nodes_listen = \"{}:{port}\"\n", machine.gateway()));
    Platform::start_with(&options)
}
