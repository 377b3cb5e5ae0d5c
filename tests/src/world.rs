//! One `longshore world` in a directory of its own, gone without a trace at the end.

mod etcd;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use longshore_api::v1::{AppView, InstanceView, LocationView};
use longshore_world::control::{LocationStatus, MachineStatus, PathStatus, Status};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::etcd::Etcd;
use crate::cli::Finished;
use crate::http::{Request, Response};
use crate::image::{Layout, checked};
use crate::leaks::{self, Marks};
use crate::platform::{Endpoints, Remote, binary};
use crate::process::{Process, signal};
use crate::wait::eventually;

/// The time that everything may take to end.
const END: Duration = Duration::from_secs(120);
/// Where the control plane is asked for its metrics, on its machine.
const METRICS_PORT: u16 = 4610;
/// And its ingress.
const INGRESS_METRICS_PORT: u16 = 4614;
/// A request over the wire is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// A control plane that stands still is not waited for by who wants to know what is now.
const NOW: Duration = Duration::from_secs(1);

/// How many instances may run at a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// By what it was given last.
    pub given: u64,
    /// By the largest that it may still go by.
    pub in_force: u64,
}

/// A world. Dropping it ends it with all that runs in it; [`World::finish`] checks besides that nothing
/// was left behind.
pub struct World {
    dir: TempDir,
    arguments: Vec<String>,
    /// What its processes find in their environment besides.
    variables: Vec<(&'static str, &'static str)>,
    process: Option<Child>,
    /// Where its control plane is reached.
    remote: Remote,
    endpoints: Endpoints,
    /// As it was when it had started: addresses and names stay.
    status: Status,
    /// The network of the first machine, which stays as long as the world.
    network: Option<File>,
    /// Of the machines that it had so far, also before a start anew.
    agents: Vec<String>,
    /// What the state of its control plane is in, if not in a file. It ends after the world.
    etcd: Option<Etcd>,
}

/// Where the state of the control plane of a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateIn {
    /// In a file on its machine.
    File,
    /// In an etcd of three members on its machine.
    Etcd,
}

impl World {
    /// Starts one with flags of `longshore world`, and waits until all of it is there.
    pub fn start(flags: &[&str]) -> Result<Self> {
        Self::start_in((&std::env::temp_dir(), StateIn::File), flags, &[])
    }

    /// The same with variables in the environment of all its processes.
    pub fn start_with(flags: &[&str], variables: &[(&'static str, &'static str)]) -> Result<Self> {
        Self::start_in((&std::env::temp_dir(), StateIn::File), flags, variables)
    }

    /// The same with all that it keeps below a directory, such as a disk that a test may fill.
    pub fn start_below(parent: &Path, state: StateIn, flags: &[&str]) -> Result<Self> {
        Self::start_in((parent, state), flags, &[])
    }

    fn start_in(
        (parent, state): (&Path, StateIn),
        flags: &[&str],
        variables: &[(&'static str, &'static str)],
    ) -> Result<Self> {
        let builder = &mut tempfile::Builder::new();
        // Short, for sockets; the users of instances pass it.
        builder.prefix("lsw-").permissions(fs::Permissions::from_mode(0o711));
        let dir = builder.tempdir_in(parent)?;
        fs::create_dir(dir.path().join("home"))?;
        let etcd = (state == StateIn::Etcd).then(Etcd::plan).transpose()?;
        let store = etcd.iter().map(|etcd| format!("--store={}", etcd.store()));
        let mut world = Self {
            dir,
            arguments: flags.iter().map(|flag| (*flag).to_owned()).chain(store).collect(),
            variables: variables.to_vec(),
            process: None,
            remote: Remote::new("", ""),
            endpoints: Endpoints::default(),
            status: Status {
                seed: 0,
                user_at: String::new(),
                locations: Vec::new(),
                paths: Vec::new(),
                machines: Vec::new(),
            },
            network: None,
            agents: Vec::new(),
            etcd,
        };
        world.up()?;
        Ok(world)
    }

    /// Starts it, where nothing of it runs any more.
    pub fn up(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let from = usize::try_from(log.metadata()?.len())?;
        let mut command = self.command(&["world", "--no-context"]);
        command.args(&self.arguments).arg("--data-dir").arg(self.data_dir());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn()?);
        if let Some(etcd) = &self.etcd {
            let there = || self.network_of_the_first().map(Some);
            etcd.launch(&eventually("the first machine is there", there)?)?;
        }
        let process = self.process.as_mut().context("it was started")?;
        let path = self.dir.path().join("world.log");
        eventually("the world is there", || {
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log[from..]).into_owned();
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("it ended: {status}\n{log}");
            }
            Ok(log.contains("until Ctrl-C").then_some(()))
        })?;
        self.status = self.tell(&["status"])?;
        self.network = Some(self.network_of_the_first()?);
        let control = self.data_dir().join(&self.status.machines[0].name).join("data");
        self.endpoints = serde_json::from_slice(&fs::read(control.join("endpoints.json"))?)?;
        let token = fs::read_to_string(control.join("admin-token"))?;
        self.remote = Remote::new(self.endpoints.api.trim_start_matches("http://"), token.trim());
        for machine in &self.status.machines {
            let agent = fs::read_to_string(Path::new(&machine.dir).join("data/node/agent-id"))?;
            self.agents.push(agent.trim().to_owned());
        }
        Ok(())
    }

    fn network_of_the_first(&self) -> Result<File> {
        let machines = self.tell(&["status"])?.machines;
        let pid = machines[0].pid.context("nothing runs on the first machine")?;
        Ok(File::open(format!("/proc/{pid}/ns/net"))?)
    }

    /// Kills the member of its etcd that leads, and starts it again after so long.
    pub fn kill_etcd_leader(&self, away: Duration) -> Result<()> {
        let etcd = self.etcd.as_ref().context("its state is in no etcd")?;
        etcd.kill_leader(self.network.as_ref().context("it does not run")?, away)
    }

    /// The directory of the world, which goes with it.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("w")
    }

    /// A directory for what a test needs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("world.log")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary().expect("the binary was built"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path().join("home"))
            .env("RUST_BACKTRACE", "1")
            .envs(self.variables.iter().copied());
        command
    }

    /// Tells the wire what to do, such as `cut sin`, and gives how the world is then.
    pub fn tell(&self, words: &[&str]) -> Result<Status> {
        let finished = self.try_tell(words);
        ensure!(finished.code == Some(0), "{finished}");
        Ok(serde_json::from_str(&finished.stdout)?)
    }

    /// The same, whatever comes of it.
    pub fn try_tell(&self, words: &[&str]) -> Finished {
        let dir = self.data_dir().display().to_string();
        let arguments = [&["world"], words, &["--json", "--data-dir", &dir]].concat();
        let output = self.command(&arguments).output().expect("the binary can be run");
        Finished::new(&arguments, output)
    }

    /// Runs the CLI to its end, as the administrator.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command(arguments);
        command.env("LONGSHORE_API", &self.endpoints.api);
        command.env("LONGSHORE_TOKEN", self.remote.token()).stdin(Stdio::null());
        let output = command.output().expect("the binary can be run");
        Finished::new(arguments, output)
    }

    /// Pushes an image.
    pub fn push(&self, image: &Layout, reference: &str) -> Result<()> {
        let path = image.dir.display().to_string();
        let pushed = self.run(&["image", "push", &path, reference]);
        ensure!(pushed.code == Some(0), "{pushed}");
        Ok(())
    }

    /// The API, which is reached past the wire.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// What the API answers when it is asked for this.
    pub fn call<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.remote.call_raw("GET", path, None)?;
        ensure!(response.status == 200, "{path}: {} {}", response.status, response.text());
        Ok(serde_json::from_str(&response.text())?)
    }

    /// Deploys a manifest, and waits for no more than that it is acknowledged.
    pub fn deploy_only(&self, manifest: &Value) -> Result<()> {
        let app = manifest["app"].as_str().context("a manifest names its app")?;
        let path = format!("/v1/projects/default/apps/{app}");
        let body = Some(json!({ "manifest": manifest }));
        let response = self.remote.call_raw("PUT", &path, body)?;
        ensure!(response.status < 300, "{path}: {} {}", response.status, response.text());
        Ok(())
    }

    /// Deploys a manifest and waits until what it asks for is there.
    pub fn deploy(&self, manifest: &Value) -> Result<()> {
        self.deploy_only(manifest)?;
        self.wait_until_settled(manifest["app"].as_str().unwrap_or_default())
    }

    /// Waits until an app has what it should have, everywhere, and nothing else.
    pub fn wait_until_settled(&self, app: &str) -> Result<()> {
        eventually(&format!("{app} has what it should have"), || {
            let view: AppView = self.call(&format!("/v1/projects/default/apps/{app}"))?;
            let instances = self.instances(app)?;
            let is_settled = view.ready == view.count
                && view.outdated == 0
                && u32::try_from(instances.len())? == view.count;
            ensure!(is_settled, "{view:?}\n{instances:#?}");
            Ok(Some(()))
        })
    }

    /// The instances of an app.
    pub fn instances(&self, app: &str) -> Result<Vec<InstanceView>> {
        self.call(&format!("/v1/projects/default/instances?app={app}"))
    }

    /// The locations, as the control plane knows them.
    pub fn locations(&self) -> Result<Vec<LocationView>> {
        self.call("/v1/locations")
    }

    /// As it was when it had started.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The way between two places, as it is now.
    pub fn path(&self, a: &str, b: &str) -> Result<PathStatus> {
        let status = self.tell(&["status"])?;
        let is_it = |path: &PathStatus| [[a, b], [b, a]].contains(&[&*path.a, &*path.b]);
        status.paths.into_iter().find(is_it).with_context(|| format!("no way from {a} to {b}"))
    }

    fn machine(&self, name: &str) -> Result<MachineStatus> {
        let machines = self.tell(&["status"])?.machines;
        let found = machines.into_iter().find(|machine| machine.name == name);
        found.with_context(|| format!("no machine {name}"))
    }

    /// Where requests to a location come in.
    pub fn ingress(&self, location: &str) -> Result<SocketAddr> {
        let is_it = |one: &&LocationStatus| one.name == location;
        let found = self.status.locations.iter().find(is_it);
        let found = found.with_context(|| format!("no location {location}"))?;
        Ok(found.ingress.trim_start_matches("http://").parse()?)
    }

    /// What the ingress of a location answers to the user of this machine, over the wire.
    pub fn get(&self, location: &str, host: &str, path: &str) -> Result<Response> {
        let request = Request { timeout: PATIENCE, ..Request::get(host, path) };
        request.send(self.ingress(location)?)
    }

    /// What it answers to a user of its own place.
    pub fn get_there(&self, location: &str, host: &str, path: &str) -> Result<Response> {
        self.ask_on(location, self.ingress(location)?, host, path)
    }

    /// What listens at an address answers to who asks on a machine.
    fn ask_on(
        &self,
        machine: &str,
        address: SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<Response> {
        let supervisor = self.machine(machine)?.pid.context("nothing runs there")?;
        let network = File::open(format!("/proc/{supervisor}/ns/net"))?;
        Request { timeout: PATIENCE, ..Request::get(host, path) }.send_from(&network, address)
    }

    /// How many instances may run at each location, of all apps together, at one moment since this was called.
    pub fn budgets(&self) -> Result<BTreeMap<String, Budget>> {
        let at = SocketAddr::from(([127, 0, 0, 1], METRICS_PORT));
        let network = self.network.as_ref().context("it does not run")?;
        let request = Request { timeout: NOW, ..Request::get("metrics", "/metrics") };
        let answer = request.send_from(network, at)?;
        let text = answer.text();
        let of = |what: &str| {
            let begin = format!("longshore_global_location_budget_{what}{{location=\"");
            let number = |line: &str| {
                let (location, number) = line.strip_prefix(&begin)?.split_once("\"} ")?;
                // The registry of metrics writes every gauge with a fraction.
                let number: u64 = number.split('.').next()?.parse().ok()?;
                Some((location.to_owned(), number))
            };
            text.lines().filter_map(number).collect::<BTreeMap<_, _>>()
        };
        let (given, in_force) = (of("instances"), of("in_force_instances"));
        ensure!(!given.is_empty(), "{}: {text}", answer.status);
        let budget = |(location, given): (String, u64)| {
            let in_force =
                in_force.get(&location).with_context(|| format!("{location}: {text}"))?;
            Ok((location, Budget { given, in_force: *in_force }))
        };
        given.into_iter().map(budget).collect()
    }

    /// What the ingress of the first machine tells under a name, 0 when it does not tell it.
    pub fn ingress_metric(&self, name: &str) -> Result<f64> {
        let at = SocketAddr::from(([127, 0, 0, 1], INGRESS_METRICS_PORT));
        let text = self.ask_on(&self.status.machines[0].name, at, "metrics", "/metrics")?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(Ok(0.0), |value| Ok(value.trim().parse()?))
    }

    /// From now on a machine only dials out, as one behind a NAT: who dials it hears nothing.
    pub fn put_behind_nat(&self, machine: &str) -> Result<()> {
        let supervisor = self.machine(machine)?.pid.context("nothing runs there")?;
        let rules = "table inet nat { chain input { type filter hook input priority 0; \
                     iifname != \"lo\" ct state new drop; }; }";
        let network = format!("--net=/proc/{supervisor}/ns/net");
        checked(Command::new("nsenter").args([&network, "nft", rules])).map(drop)
    }

    /// What it takes until a connection to the ingress of a location is there.
    pub fn connect(&self, location: &str) -> Result<Duration> {
        let began = Instant::now();
        TcpStream::connect_timeout(&self.ingress(location)?, PATIENCE)?;
        Ok(began.elapsed())
    }

    /// The process of a role on a machine, such as `node` or `ingress`.
    pub fn role(&self, machine: &str, role: &str) -> Result<Process> {
        let supervisor = self.supervisor(machine)?.pid;
        let all = Process::all()?.into_iter();
        let mut roles = all.filter(|process| process.parent == supervisor);
        let is_it = |process: &Process| process.arguments.get(1).is_some_and(|verb| verb == role);
        roles.find(is_it).with_context(|| format!("no {role} on {machine}"))
    }

    /// The process of the supervisor of a machine.
    pub fn supervisor(&self, machine: &str) -> Result<Process> {
        let pid = self.machine(machine)?.pid.context("nothing runs there")?;
        Process::read(pid.cast_signed()).with_context(|| format!("{machine}: {pid} is gone"))
    }

    /// The containers that run, by the machine that they run on: each with the id of its instance. Asked of
    /// the kernel, so that it is true whoever is cut off.
    pub fn containers(&self) -> Result<BTreeSet<(String, String)>> {
        let all = Process::all()?;
        let parents: BTreeSet<i32> = all.iter().map(|process| process.parent).collect();
        let shims = self.shims_of(&all);
        let found = shims.filter(|shim| parents.contains(&shim.pid)).filter_map(|shim| {
            // `shim RUN_DIR/shims/INSTANCE ..`, below the directory of the machine.
            let path = Path::new(shim.arguments.get(2)?);
            let below = path.strip_prefix(self.data_dir()).ok()?;
            let machine = below.iter().next()?.to_str()?.to_owned();
            Some((machine, path.file_name()?.to_str()?.to_owned()))
        });
        Ok(found.collect())
    }

    /// Ends the world and the supervisors of all machines at once, as the kernel does when memory runs out.
    pub fn kill_all(&mut self) -> Result<()> {
        let supervisors = self.status.machines.iter().map(|machine| self.supervisor(&machine.name));
        let supervisors = supervisors.collect::<Result<Vec<_>>>()?;
        // Stopped first, so that none notices the end of the others.
        supervisors.iter().try_for_each(|process| signal(process.pid, Signal::STOP))?;
        let mut world = self.process.take().context("it does not run")?;
        world.kill()?;
        world.wait()?;
        supervisors.iter().try_for_each(Process::kill)
    }

    /// The shims of all machines, one per container.
    pub fn shims(&self) -> Result<Vec<Process>> {
        Ok(self.shims_of(&Process::all()?).cloned().collect())
    }

    fn shims_of<'a>(&self, all: &'a [Process]) -> impl Iterator<Item = &'a Process> {
        let dir = self.data_dir().display().to_string();
        let is_shim = move |process: &&Process| {
            process.arguments.get(1).is_some_and(|verb| verb == "shim") && process.mentions(&dir)
        };
        all.iter().filter(is_shim)
    }

    /// Ends it as Ctrl-C does.
    pub fn down(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        signal(process.id().cast_signed(), Signal::INT)?;
        let deadline = Instant::now() + END;
        let status = loop {
            match process.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.process = Some(process);
                    anyhow::bail!("the world does not end\n{}", self.log());
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        ensure!(status.success(), "it ended: {status}\n{}", self.log());
        Ok(())
    }

    /// What it and its machines wrote.
    fn log(&self) -> String {
        let mut text = fs::read_to_string(self.log_path()).unwrap_or_default();
        for machine in &self.status.machines {
            let log = fs::read_to_string(Path::new(&machine.dir).join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            text.push_str(&format!("\n== {}\n{tail}\n", machine.name));
        }
        text
    }

    /// Whatever is left of it, one line each.
    fn leaks(&self) -> Vec<String> {
        let dir = self.data_dir();
        let mut found: Vec<String> =
            dir.exists().then(|| format!("directory {}", dir.display())).into_iter().collect();
        let agents = self.agents.iter().cloned().map(Some).chain([None]);
        for agent in agents {
            found.extend(leaks::find(&Marks { dir: dir.display().to_string(), agent }));
        }
        found
    }

    /// Ends it and checks that nothing is left of it.
    ///
    /// # Panics
    /// When something is left.
    pub fn finish(mut self) {
        self.down().expect("the world ends");
        let leaks = eventually("nothing is left", || {
            let leaks = self.leaks();
            ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
            Ok(Some(()))
        });
        leaks.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.process.is_none() && self.leaks().is_empty() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the world wrote:\n{}", self.log());
        }
        // What was killed is cleaned by a start; what does not obey is killed.
        let ended = match self.process {
            Some(_) => self.down(),
            None => self.up().and_then(|()| self.down()),
        };
        if let Err(error) = ended {
            eprintln!("the world does not end: {error:#}");
            if let Some(mut process) = self.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
            let dir = self.data_dir().display().to_string();
            for process in Process::all().unwrap_or_default() {
                if process.mentions(&dir) {
                    let _ = process.kill();
                }
            }
        }
    }
}
