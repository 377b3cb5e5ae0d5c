//! A control plane of the release build with nothing else of a platform around it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use axum::Router;
use longshore_e2e::process::{memory_field, signal};
use longshore_e2e::{eventually, platform};
use longshore_link::{Client, Endpoint, Listener};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The token that has every right.
pub const ADMIN_TOKEN: &str = "lsh_bench_admin";
/// What any image is here.
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A registry that has every image, and of which a control plane asks nothing but digests.
pub fn registry(runtime: &Runtime, shutdown: CancellationToken) -> Result<Endpoint> {
    let _context = runtime.enter();
    let listener = Listener::bind("registry", &Endpoint::Tcp("127.0.0.1:0".into()))?;
    let endpoint = listener.endpoint()?;
    let any = Router::new().fallback(|| async { [("docker-content-digest", DIGEST)] });
    runtime.spawn(listener.serve(any, shutdown));
    Ok(endpoint)
}

/// A role in a process of its own, killed when this is dropped.
pub struct Role {
    child: Child,
}

impl Role {
    /// Starts one with these arguments of `longshore`; what it says goes to a file.
    pub fn start(arguments: &[String], log: &Path) -> Result<Self> {
        let child = Command::new(platform::binary()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(log)?)
            .spawn()
            .with_context(|| format!("cannot start {arguments:?}; was it built?"))?;
        Ok(Self { child })
    }

    /// A process that runs already.
    pub fn of(child: Child) -> Self {
        Self { child }
    }

    /// Its process.
    pub fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.child.id())?)
    }

    /// Kills it as a machine that fails does.
    pub fn kill(&mut self) -> Result<()> {
        signal(self.pid()?, Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// The memory that it has now, in MiB.
    pub fn rss_mib(&self) -> Result<f64> {
        let kib = memory_field(self.pid()?, "status", "VmRSS:")?;
        Ok(f64::from(u32::try_from(kib)?) / 1024.0)
    }

    /// The processor time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds_of(self.pid()?)
    }
}

/// The processor time that a process has used, in seconds.
pub fn cpu_seconds_of(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |idx: usize| fields.get(idx).and_then(|text| text.parse::<u32>().ok());
    // Of the fields after the name the 12th and 13th: in the program and in the kernel.
    let used = ticks(11).zip(ticks(12)).context("a stat without times")?;
    let a_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
    Ok((f64::from(used.0) + f64::from(used.1)) / f64::from(a_second))
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended by itself, which is said where it was missed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control plane.
pub struct Plane {
    /// Its process.
    pub role: Role,
    /// Where the API is.
    pub api: SocketAddr,
    /// Where locations call.
    pub link: Endpoint,
}

impl Plane {
    /// Starts one with its files in a directory, which lets everybody ask as often as they like, and waits
    /// until it answers. `store` is what `--store` takes.
    pub fn start(dir: &Path, store: &str, registry: &Endpoint, runtime: &Runtime) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let at = |name: &str| -> PathBuf { dir.join(name) };
        fs::write(at("admin"), ADMIN_TOKEN)?;
        fs::write(at("system"), "lsh_bench_system")?;
        let api = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let link = Endpoint::Unix(at("link.sock"));
        let file = |name: &str| at(name).display().to_string();
        let (address, called, images) =
            (format!("http://{api}"), link.to_string(), registry.to_string());
        let (data, keys, root) = (file("data"), file("keys.json"), file("root.json"));
        let (admin, system) = (file("admin"), file("system"));
        let arguments = [
            ["--data-dir", &data],
            ["--store", store],
            ["--api-listen", &address],
            ["--link-listen", &called],
            ["--registry", &images],
            ["--admin-token-file", &admin],
            ["--system-token-file", &system],
            ["--secret-keys-file", &keys],
            ["--root-file", &root],
            ["--api-rate", "1000000"],
        ];
        let mut all = vec!["global".to_owned()];
        all.extend(arguments.into_iter().flatten().map(str::to_owned));
        let role = Role::start(&all, &at("log"))?;
        let plane = Self { role, api, link };
        let user = plane.client();
        eventually("the API answers", || {
            let asked = user.get::<serde_json::Value>("/v1/health");
            Ok(runtime.block_on(asked).ok().map(drop))
        })?;
        Ok(plane)
    }

    /// A client with every right.
    pub fn client(&self) -> Client {
        Client::new(Endpoint::Tcp(self.api.to_string())).with_token(ADMIN_TOKEN)
    }
}
