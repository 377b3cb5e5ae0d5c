//! Another machine, as far as the network tells: a namespace behind a link, in which a node, a location or the
//! registry can join.

use std::fs::{self, File, OpenOptions, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::debian::newer_path;
use crate::http::{Request, Response};
use crate::image::checked;
use crate::leaks::{self, Marks};
use crate::platform::{Instances, Platform, binary};
use crate::process::{Process, signal};
use crate::wait::eventually;

/// How many machines a test may have, and how many this one has had.
const MOST: u32 = 8;
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Where a registry that joined takes pushes.
const REGISTRY_PORT: u16 = 4601;
/// Where the ingress of a location listens, on the loopback of its machine.
const INGRESS_PORT: u16 = 8080;

/// A machine. Dropping it ends what joined with all instances and takes the namespace away;
/// [`Machine::finish`] checks besides that nothing was left behind.
pub struct Machine {
    dir: TempDir,
    /// The namespace, and in part the name of the link.
    name: String,
    /// The block of four addresses: this side's is the first, the machine's the second.
    network: u32,
    /// What it joined as.
    part: Part,
    supervisor: Option<Child>,
}

/// What a machine joins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A node of a location.
    Node,
    /// A location of its own.
    Location,
    /// The registry.
    Registry,
}

impl Part {
    /// The verb that it joins by.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Location => "location",
            Self::Registry => "registry",
        }
    }
}

impl Machine {
    /// Makes one that can be reached at [`Self::address`], and reaches [`Self::gateway`].
    pub fn start(part: Part) -> Result<Self> {
        let builder = &mut tempfile::Builder::new();
        builder.prefix("lsm-").permissions(Permissions::from_mode(0o711));
        let dir = builder.tempdir()?;
        fs::create_dir(dir.path().join("home"))?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        ensure!(number < MOST, "a test has at most {MOST} machines");
        let unique = std::process::id() % (1 << 11) * MOST + number;
        // Of the network for measurements, the half that no other test uses.
        let network = u32::from(Ipv4Addr::new(198, 19, 0, 0)) + unique * 4;
        let machine = Self { dir, name: format!("lsm{unique}"), network, part, supervisor: None };
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

    /// What it joins as.
    pub fn part(&self) -> Part {
        self.part
    }

    /// This side's address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// The machine's.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 2)
    }

    /// From now on it only dials out, as one behind a NAT: who dials it hears nothing.
    pub fn put_behind_nat(&self) -> Result<()> {
        let rules = format!(
            "table inet nat {{ chain input {{ type filter hook input priority 0; \
             iifname {}i ct state new drop; }}; }}",
            self.name
        );
        checked(Command::new("ip").args(["netns", "exec", &self.name, "nft", &rules])).map(drop)
    }

    /// Has a node believe that its certificate has expired, before it is started.
    pub fn age_certificate(&self) -> Result<()> {
        let path = self.dir.path().join("data/secrets/identity.json");
        let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        kept["expires_at"] = 1.into();
        Ok(fs::write(&path, kept.to_string())?)
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

    /// Joins with a token, as node `name`, and runs what it joined as until that is stopped.
    pub fn join(&mut self, token: &str, name: &str) -> Result<()> {
        let named: &[&str] = match self.part {
            Part::Node => &["--name", name],
            Part::Location => &["--node", name],
            Part::Registry => &[],
        };
        self.run(&[&[self.part.verb(), "join", token], named].concat(), Instances::Keep)
    }

    /// Runs what it joined as.
    pub fn up(&mut self, instances: Instances) -> Result<()> {
        self.run(&[self.part.verb(), "start"], instances)
    }

    /// Runs the node that it joined as, which looks for its location there from now on.
    pub fn up_at(&mut self, location: &str) -> Result<()> {
        ensure!(self.part == Part::Node, "only a node has another location than itself");
        self.run(&["node", "start", "--location-at", location], Instances::Keep)
    }

    fn run(&mut self, verb: &[&str], instances: Instances) -> Result<()> {
        ensure!(self.supervisor.is_none(), "it runs already");
        let text = |path: PathBuf| path.display().to_string();
        let (data, run) = (text(self.dir.path().join("data")), text(self.dir.path().join("run")));
        let runsc = text(newer_path("runsc"));
        let ingress = format!("127.0.0.1:{INGRESS_PORT}");
        let users = format!("{}:{REGISTRY_PORT}", self.address());
        let mut arguments = verb.to_vec();
        arguments.extend(["--data-dir", &data, "--run-dir", &run]);
        match self.part {
            Part::Node => arguments.extend(["--runsc", &runsc]),
            Part::Location => arguments.extend(["--runsc", &runsc, "--ingress-listen", &ingress]),
            Part::Registry => arguments.extend(["--listen", &users, "--tls-self-signed"]),
        }
        if self.part != Part::Registry && instances == Instances::Stop {
            arguments.push("--stop-instances");
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let from = log.metadata()?.len();
        let mut command = self.command(&arguments)?;
        let supervisor = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let supervisor = self.supervisor.insert(supervisor);
        let (path, part) = (self.dir.path().join("machine.log"), self.part);
        eventually("what joined runs", || {
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log[usize::try_from(from)?..]).into_owned();
            if let Some(status) = supervisor.try_wait()? {
                anyhow::bail!("it ended: {status}\n{log}");
            }
            // From then on its agent minds what it is told.
            let minds = part == Part::Registry || log.contains("what instances write is limited");
            Ok((log.contains(" runs for ") && minds).then_some(()))
        })
    }

    /// Asks the supervisor to end, and waits until it has.
    pub fn down(&mut self) -> Result<()> {
        let mut supervisor = self.supervisor.take().context("nothing runs")?;
        signal(supervisor.id().cast_signed(), Signal::TERM)?;
        let status = eventually("what joined ends", || Ok(supervisor.try_wait()?))?;
        ensure!(status.success(), "it ended: {status}\n{}", self.log());
        Ok(())
    }

    /// Kills a role, which its supervisor starts again.
    pub fn kill(&self, role: &str) -> Result<()> {
        let supervisor = self.supervisor.as_ref().context("nothing runs")?.id().cast_signed();
        let is_role = |process: &&Process| {
            process.parent == supervisor
                && process.arguments.get(1).is_some_and(|verb| verb == role)
        };
        let all = Process::all()?;
        all.iter().find(is_role).with_context(|| format!("no {role} runs"))?.kill()
    }

    /// Kills the shim of an instance, with which its program dies, and waits until both run anew.
    pub fn kill_shim(&self, instance: &str) -> Result<()> {
        let before = self.shim(instance)?.with_context(|| format!("{instance} does not run"))?;
        before.kill()?;
        eventually("what died runs anew", || {
            Ok(self.shim(instance)?.filter(|now| now.pid != before.pid).map(drop))
        })
    }

    /// The shim of an instance whose program runs.
    fn shim(&self, instance: &str) -> Result<Option<Process>> {
        let all = Process::all()?;
        let dir = self.dir.path().display().to_string();
        let runs = |shim: &&Process| all.iter().any(|process| process.parent == shim.pid);
        let is_it = |process: &&Process| {
            process.arguments.get(1).is_some_and(|verb| verb == "shim")
                && process.mentions(&dir)
                && process.mentions(instance)
        };
        Ok(all.iter().filter(is_it).find(runs).cloned())
    }

    /// What the ingress of a location answers to a user of that machine.
    pub fn get(&self, host: &str, path: &str) -> Result<Response> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        let ingress = (Ipv4Addr::LOCALHOST, INGRESS_PORT).into();
        Request::get(host, path).send_from(&namespace, ingress)
    }

    /// Where users reach a registry that joined, and by what they trust it.
    pub fn registry(&self) -> (String, PathBuf) {
        let authority = format!("{}:{REGISTRY_PORT}", self.address());
        (authority, self.dir.path().join("data/tls-ca.pem"))
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("machine.log")
    }

    /// By what its own things are known.
    pub fn marks(&self) -> Marks {
        let agent = fs::read_to_string(self.dir.path().join("data/node/agent-id")).ok();
        let agent = agent.map(|agent| agent.trim().to_owned());
        Marks { dir: self.dir.path().display().to_string(), agent }
    }

    /// Ends what joined with all its instances and checks that nothing is left of it.
    ///
    /// # Panics
    /// When something is left.
    pub fn finish(mut self) {
        let marks = self.marks();
        self.end().expect("what joined ends");
        let leaks = eventually("nothing is left", || {
            let leaks = leaks::find(&marks);
            ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
            Ok(Some(()))
        });
        leaks.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    fn end(&mut self) -> Result<()> {
        if self.supervisor.is_some() {
            self.down()?;
        }
        if self.dir.path().join("data/membership.json").exists() {
            self.up(Instances::Stop)?;
            self.down()?;
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
                eprintln!("what joined does not end: {error:#}");
            }
            if let Some(mut supervisor) = self.supervisor.take() {
                let _ = supervisor.kill();
                let _ = supervisor.wait();
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

/// A platform that listens on the link to a machine for what that joins as.
pub fn platform_for(machine: &Machine, mut options: crate::UpOptions) -> Result<Platform> {
    let key = match machine.part {
        Part::Node => "nodes_listen",
        Part::Location => "locations_listen",
        Part::Registry => {
            options.config.push_str("registry = \"joined\"\n");
            "locations_listen"
        }
    };
    // The address is this test's own.
    options.config.push_str(&format!("{key} = \"{}:4604\"\n", machine.gateway()));
    Platform::start_with(&options)
}
