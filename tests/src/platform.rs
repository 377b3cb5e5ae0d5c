//! One `longshore up` in a directory of its own, gone without a trace at the end.

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use longshore_api::v1::{AppView, DeployResponse, InstanceView, ReleaseView};
use rustix::process::Signal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::Finished;
use crate::debian::newer_path;
use crate::http::{Request, Response};
use crate::image::{Layout, checked};
use crate::leaks::{self, Marks};
use crate::process::{Process, signal};
use crate::wait::eventually;

/// Debian's own programs and no others.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How a platform is started.
#[derive(Debug, Clone, Default)]
pub struct UpOptions {
    /// Where its directory is made; the system's temporary directory when absent.
    pub parent: Option<PathBuf>,
    /// Further lines of its config file.
    pub config: String,
    /// Roles whose directories lie elsewhere, on disks of their own.
    pub elsewhere: Vec<(&'static str, PathBuf)>,
}

/// Where a platform is reached, as it publishes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Endpoints {
    /// The API, `http://host:port` or `https://host:port`.
    pub api: String,
    /// The platform's own registry, `host:port`; empty where one joins.
    pub registry: String,
    /// The ingress, `host:port`.
    pub ingress: String,
}

/// Whether instances outlive the end of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instances {
    /// They go on, to be adopted by the next start.
    Keep,
    /// They end with it.
    Stop,
}

/// A platform. Dropping it ends it with all its instances; [`Platform::finish`] checks besides
/// that nothing was left behind.
pub struct Platform {
    dir: TempDir,
    config: String,
    binary: PathBuf,
    supervisor: Option<Child>,
    endpoints: Endpoints,
    token: String,
}

impl Platform {
    /// Starts one and waits until it answers.
    pub fn start() -> Result<Self> {
        Self::start_with(&UpOptions::default())
    }

    /// Starts one in a certain way.
    pub fn start_with(options: &UpOptions) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        // Short: the path of a Unix socket below it has a little over a hundred bytes.
        builder.prefix("lst-");
        // The users of instances pass it on the way to their file systems.
        builder.permissions(fs::Permissions::from_mode(0o711));
        let dir = match &options.parent {
            Some(parent) => builder.tempdir_in(parent)?,
            None => builder.tempdir()?,
        };
        fs::create_dir(dir.path().join("home"))?;
        for (role, disk) in &options.elsewhere {
            fs::create_dir_all(dir.path().join("data"))?;
            std::os::unix::fs::symlink(disk, dir.path().join("data").join(role))?;
        }
        // Kept over restarts, so that clients need not look again.
        let [api, registry, ingress] = free_ports()?;
        let mut platform = Self {
            dir,
            config: options.config.clone(),
            binary: binary()?,
            supervisor: None,
            endpoints: Endpoints {
                api: format!("http://127.0.0.1:{api}"),
                registry: format!("127.0.0.1:{registry}"),
                ingress: format!("127.0.0.1:{ingress}"),
            },
            token: String::new(),
        };
        platform.up(Instances::Keep)?;
        Ok(platform)
    }

    /// Further lines of its config file, from its next start on.
    pub fn configure(&mut self, config: impl Into<String>) {
        self.config = config.into();
    }

    /// Starts the supervisor, which must not be running, and waits until the platform answers.
    pub fn up(&mut self, instances: Instances) -> Result<()> {
        anyhow::ensure!(self.supervisor.is_none(), "the platform runs already");
        // An older file would be taken for the word of the new process.
        let published = self.data_dir().join("endpoints.json");
        if published.exists() {
            fs::remove_file(&published)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&self.up_arguments(instances)?);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.supervisor = Some(command.spawn().context("cannot start longshore up")?);
        eventually("the platform publishes where it is reached", || {
            if let Some(status) = self.supervisor_status()? {
                bail!("longshore up ended: {status}\n{}", self.log_tail());
            }
            Ok(published.exists().then_some(()))
        })?;
        self.endpoints = serde_json::from_slice(&fs::read(&published)?)?;
        let token = fs::read_to_string(self.data_dir().join("admin-token"))?;
        token.trim().clone_into(&mut self.token);
        if self.endpoints.api.starts_with("https://") {
            // It is published once it answers, and not everyone may ask without knowing whom to trust.
            return Ok(());
        }
        eventually("the API answers", || {
            let response = Request::get("api", "/v1/health").send(self.remote().address()?)?;
            Ok((response.status == 200).then_some(()))
        })
    }

    /// Writes the config file for the next start, and gives the arguments.
    fn up_arguments(&self, instances: Instances) -> Result<Vec<String>> {
        let config = self.dir().join("up.toml");
        let runsc = if self.config.contains("runsc =") {
            String::new()
        } else {
            format!("runsc = {:?}\n", newer_path("runsc"))
        };
        // It has none of its own where one joined.
        let registry = Some(&self.endpoints.registry).filter(|registry| !registry.is_empty());
        let registry = registry.map(|registry| format!("registry_listen = {registry:?}\n"));
        let registry = registry.unwrap_or_default();
        let text = format!(
            "data_dir = {:?}\nrun_dir = {:?}\napi_listen = {:?}\n{registry}\
             ingress_listen = {:?}\nmetrics_listen = \"127.0.0.1:0\"\nstop_instances = {}\n{runsc}{}",
            self.data_dir(),
            self.dir().join("run"),
            self.endpoints.api.rsplit("://").next().unwrap_or_default(),
            self.endpoints.ingress,
            instances == Instances::Stop,
            self.config,
        );
        fs::write(&config, text)?;
        Ok(["up", "--config"]
            .map(str::to_owned)
            .into_iter()
            .chain([config.display().to_string()])
            .collect())
    }

    /// Asks the supervisor to end, and waits until it has.
    pub fn down(&mut self) -> Result<ExitStatus> {
        let mut supervisor = self.supervisor.take().context("the platform does not run")?;
        signal(supervisor.id().cast_signed(), Signal::TERM)?;
        let status = eventually("longshore up ends", || Ok(supervisor.try_wait()?));
        if status.is_err() {
            // Kept, so that dropping the platform ends it the hard way.
            self.supervisor = Some(supervisor);
        }
        status
    }

    /// Ends the supervisor at once, as the kernel does when memory runs out.
    pub fn kill_supervisor(&mut self) -> Result<()> {
        let mut supervisor = self.supervisor.take().context("the platform does not run")?;
        supervisor.kill()?;
        supervisor.wait()?;
        Ok(())
    }

    /// Ends the platform with all its instances and checks that nothing is left of it.
    ///
    /// # Panics
    /// When something is left.
    pub fn finish(mut self) {
        let marks = self.marks();
        self.stop_all().expect("the platform ends");
        let leaks = eventually("nothing is left", || {
            let leaks = leaks::find(&marks);
            anyhow::ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
            Ok(Some(()))
        });
        leaks.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()));
    }

    /// By what its own things are known. Before the platform ends, for the id of the agent goes
    /// with the data directory.
    pub fn marks(&self) -> Marks {
        Marks { dir: self.dir.path().display().to_string(), agent: self.agent_id() }
    }

    fn stop_all(&mut self) -> Result<()> {
        if self.supervisor.is_some() {
            self.down()?;
        }
        self.up(Instances::Stop)?;
        let status = self.down()?;
        anyhow::ensure!(status.success(), "longshore up ended: {status}\n{}", self.log_tail());
        Ok(())
    }

    /// The directory below which everything of this platform lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What was given as `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where it is reached.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The token of its administrator.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The id of its node agent, once that has chosen one.
    pub fn agent_id(&self) -> Option<String> {
        let text = fs::read_to_string(self.data_dir().join("node/agent-id")).ok()?;
        Some(text.trim().to_owned())
    }

    /// Where the ingress listens.
    pub fn ingress_address(&self) -> SocketAddr {
        let text = &self.endpoints.ingress;
        text.parse().unwrap_or_else(|error| panic!("{text:?} is no address: {error}"))
    }

    /// Where the supervisor and all roles write their log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("up.log")
    }

    /// The last lines that `up` wrote.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 60;
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// The API of a platform and the token of its administrator.
#[derive(Debug, Clone)]
pub struct Remote {
    api: String,
    token: String,
}

impl Remote {
    /// The API at `host:port`, with a token.
    pub fn new(api: &str, token: &str) -> Self {
        Self { api: api.to_owned(), token: token.to_owned() }
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the API listens.
    pub fn address(&self) -> Result<SocketAddr> {
        let text = &self.api;
        text.parse().with_context(|| format!("{text:?} is no address"))
    }

    /// Calls the API.
    pub fn call_raw(&self, method: &str, path: &str, body: Option<Value>) -> Result<Response> {
        let body = body.map(|body| body.to_string().into_bytes());
        let request = Request {
            method,
            token: Some(&self.token),
            body: body.as_deref(),
            ..Request::get("api", path)
        };
        request.send(self.address()?)
    }

    /// Calls the API for an answer that is read as it comes.
    pub fn open(&self, path: &str) -> Result<TcpStream> {
        Request { token: Some(&self.token), ..Request::get("api", path) }.open(self.address()?)
    }
}

/// What a user does.
impl Platform {
    /// The CLI with these arguments, in a home of its own.
    pub fn command<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.dir.path().join("home"))
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// The CLI, let in by the administrator's token.
    pub fn client<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = self.command(arguments);
        self.let_in(&mut command);
        command
    }

    /// Tells a program where the API is, and gives it the administrator's token.
    pub fn let_in<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LONGSHORE_API", &self.endpoints.api).env("LONGSHORE_TOKEN", &self.token)
    }

    /// Runs the CLI to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = self.client(arguments);
        let output = command.stdin(Stdio::null()).output().expect("the release binary can be run");
        Finished::new(arguments, output)
    }

    /// Pushes an image to the platform's registry with skopeo.
    pub fn push(&self, image: &Layout, reference: &str) -> Result<()> {
        self.push_from(&image.source(), reference)
    }

    /// The same for whatever skopeo can read.
    pub fn push_from(&self, source: &str, reference: &str) -> Result<()> {
        let target = format!("docker://{}/{reference}", self.endpoints.registry);
        let credentials = format!("anyone:{}", self.token);
        let mut skopeo = self.tool("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args([
            "--dest-creds",
            &credentials,
            source,
            &target,
        ]);
        checked(&mut skopeo)
    }

    /// Another program, in the same home.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .current_dir(self.dir())
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.dir().join("home"))
            .stdin(Stdio::null());
        command
    }

    /// Calls the API and reads the answer as JSON.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<T> {
        let response = self.call_raw(method, path, body)?;
        let text = response.text();
        if response.status >= 400 {
            bail!("{method} {path}: {} {text}", response.status);
        }
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))
    }

    /// Calls the API.
    pub fn call_raw(&self, method: &str, path: &str, body: Option<Value>) -> Result<Response> {
        self.remote().call_raw(method, path, body)
    }

    /// The API for a thread of its own.
    pub fn remote(&self) -> Remote {
        Remote {
            api: self.endpoints.api.trim_start_matches("http://").to_owned(),
            token: self.token.clone(),
        }
    }

    /// Asks the ingress for a page.
    pub fn get(&self, host: &str, path: &str) -> Result<Response> {
        Request::get(host, path).send(self.ingress_address())
    }

    /// Deploys a manifest, a table with at least `app`, and waits until as many instances of the
    /// new release as it asks for are healthy and the old ones are gone.
    pub fn deploy(&self, manifest: &Value) -> Result<DeployResponse> {
        let response = self.deploy_only(manifest)?;
        let app = manifest["app"].as_str().context("a manifest names its app")?;
        self.wait_until_settled(app)?;
        Ok(response)
    }

    /// Deploys a manifest and waits for nothing.
    pub fn deploy_only(&self, manifest: &Value) -> Result<DeployResponse> {
        let app = manifest["app"].as_str().context("a manifest names its app")?;
        let path = format!("/v1/projects/default/apps/{app}");
        self.call("PUT", &path, Some(json!({ "manifest": manifest })))
    }

    /// Waits until an app has what it should have and nothing else.
    pub fn wait_until_settled(&self, app: &str) -> Result<AppView> {
        eventually(&format!("{app} has what it should have"), || {
            let view = self.app(app)?;
            let settled = view.ready == view.count && view.outdated == 0;
            anyhow::ensure!(settled, "{view:?}\n{}", self.describe_instances(app));
            Ok(Some(view))
        })
        .with_context(|| format!("the platform says:\n{}", self.log_tail()))
    }

    fn describe_instances(&self, app: &str) -> String {
        match self.instances(app) {
            Ok(instances) => format!("{instances:#?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    /// An app.
    pub fn app(&self, app: &str) -> Result<AppView> {
        self.call("GET", &format!("/v1/projects/default/apps/{app}"), None)
    }

    /// The releases of an app that are kept, oldest first.
    pub fn releases(&self, app: &str) -> Result<Vec<ReleaseView>> {
        self.call("GET", &format!("/v1/projects/default/apps/{app}/releases"), None)
    }

    /// The instances of an app.
    pub fn instances(&self, app: &str) -> Result<Vec<InstanceView>> {
        self.call("GET", &format!("/v1/projects/default/instances?app={app}"), None)
    }

    /// Waits until an instance of the app is as wished for.
    pub fn wait_for_instance(
        &self,
        app: &str,
        what: &str,
        wished: impl Fn(&InstanceView) -> bool,
    ) -> Result<InstanceView> {
        eventually(&format!("an instance of {app} {what}"), || {
            let found = self.instances(app)?.into_iter().find(&wished);
            anyhow::ensure!(found.is_some(), "{}", self.describe_instances(app));
            Ok(found)
        })
        .with_context(|| format!("the platform says:\n{}", self.log_tail()))
    }

    /// Removes an app and waits until it is gone with its instances.
    pub fn remove(&self, app: &str) -> Result<()> {
        let path = format!("/v1/projects/default/apps/{app}");
        let response = self.call_raw("DELETE", &path, None)?;
        anyhow::ensure!(response.status == 204, "{}: {}", response.status, response.text());
        eventually(&format!("{app} is gone"), || {
            let response = self.call_raw("GET", &path, None)?;
            Ok((response.status == 404).then_some(()))
        })
    }
}

/// What is going on inside.
impl Platform {
    /// The process of a role, such as `node` or `ingress`.
    pub fn role(&self, name: &str) -> Result<Process> {
        let supervisor = self.supervisor_pid()?;
        Process::all()?
            .into_iter()
            .find(|process| {
                process.parent == supervisor
                    && process.arguments.get(1).is_some_and(|verb| verb == name)
            })
            .with_context(|| format!("no process of the role {name}"))
    }

    /// The process of the supervisor.
    pub fn supervisor_pid(&self) -> Result<i32> {
        let supervisor = self.supervisor.as_ref().context("the platform does not run")?;
        Ok(supervisor.id().cast_signed())
    }

    /// The shims, one per container.
    pub fn shims(&self) -> Result<Vec<Process>> {
        let marks = self.marks();
        let is_ours = |process: &Process| {
            process.mentions(&marks.dir)
                || marks.agent.as_ref().is_some_and(|agent| process.mentions(agent))
        };
        let is_shim =
            |process: &Process| process.arguments.get(1).is_some_and(|verb| verb == "shim");
        let all = Process::all()?;
        Ok(all.into_iter().filter(|process| is_shim(process) && is_ours(process)).collect())
    }

    fn supervisor_status(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.supervisor {
            Some(supervisor) => Ok(supervisor.try_wait()?),
            None => bail!("the platform does not run"),
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let marks = self.marks();
        if leaks::find(&marks).is_empty() {
            return;
        }
        // A test failed. Its platform is asked to clean up, which is also the best chance to get
        // rid of mounts and namespaces; what does not obey is killed.
        if std::thread::panicking() {
            eprintln!("the platform wrote:\n{}", self.log_tail());
        }
        if let Err(error) = self.stop_all() {
            eprintln!("the platform does not end: {error:#}");
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
}

/// The binary that is tested: the release build, unless the environment names another.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("LONGSHORE_BIN") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/longshore"),
    };
    path.canonicalize().with_context(|| {
        format!("no binary {}; build it first: cargo build --release", path.display())
    })
}

/// Ports that nobody listens on now, below those that the kernel gives to outgoing connections: a
/// platform that is killed finds its ports free when it starts again.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests run in processes of their own; each begins to look elsewhere.
    let begin = std::process::id().wrapping_mul(7919);
    let mut ports = [0; N];
    for port in &mut ports {
        *port = (0..COUNT)
            .find_map(|_| {
                let offset = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
                let candidate = u16::try_from(FIRST + offset).ok()?;
                TcpListener::bind(("127.0.0.1", candidate)).ok().map(|_| candidate)
            })
            .context("no port is free")?;
    }
    Ok(ports)
}
