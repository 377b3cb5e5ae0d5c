//! A world from its start to its end.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::v1::{JoinTokenRequest, JoinTokenRole, LocationView};
use longshore_client::Client;
use longshore_link::Service;
use longshore_world::control::{Command, Status};
use longshore_world::{Carrier, Machine, Subnet, Wire, here};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::control::Control;
use super::forward::Forward;
use super::machines::{END, Machines, Made};
use super::plan::{Part, Ports, WorldPlan, WorldSettings, ingress_of};
use super::sweep;
use crate::commands::run_client;
use crate::context_file::{self, ADMIN_TOKEN_FILE, Endpoints};
use crate::demo::request;
use crate::failure::{Failure, Kind, OrFail};
use crate::output::say;
use crate::supervisor::own_program;

const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long each step of a start may take, on a machine that has much else to do.
const START: Duration = Duration::from_secs(120);
/// A supervisor that ended so often by itself is not about to succeed.
const MOST_DEATHS: u32 = 3;
/// The file that makes a directory that of a world, locked for as long as one of its machines runs.
const HOLD_FILE: &str = "machines.lock";

/// A world whose machines exist.
pub struct World {
    dir: PathBuf,
    machines: Arc<Machines>,
    control: Arc<Control>,
    service: Service,
    shutdown: CancellationToken,
    ports: Ports,
    _forwards: [Forward; 2],
    /// Held by this process alone.
    _lock: File,
}

impl World {
    /// Makes its machines and the wire between them, once what an earlier world left is gone. Nothing
    /// runs on them yet.
    pub async fn make(settings: &WorldSettings) -> Result<Self, Failure> {
        let doing = || format!("cannot make a world in {}", settings.dir.display());
        let exe = own_program().or_fail(Kind::Other, "cannot find our own program")?;
        let Taken { dir, lock, hold } = take(&settings.dir).await?;
        sweep::sweep(&dir, &exe).await?;
        let plan = settings.plan();
        let (carrier, machines, subnet) = connect(&plan, settings.seed)?;
        let (api, registry) = (listen(4600), listen(4601));
        let [api, registry] =
            [api.or_fail(Kind::Other, doing())?, registry.or_fail(Kind::Other, doing())?];
        let port = |listener: &TcpListener| {
            listener.local_addr().map(|at| at.port()).or_fail(Kind::Other, doing())
        };
        let ports = Ports { api: port(&api)?, registry: port(&registry)? };
        let control = plan.control();
        let forward = |listener| Forward::start(listener, &machines[control]);
        let forwards = [
            forward(api).or_fail(Kind::Other, doing())?,
            forward(registry).or_fail(Kind::Other, doing())?,
        ];
        let made = Made { carrier, machines, subnet, exe, hold };
        let machines = Machines::new(plan, &dir, made).or_fail(Kind::Other, doing())?;
        let machines = Arc::new(machines);
        let shutdown = CancellationToken::new();
        let service = Service::new(shutdown.clone()).with_drain(END + LOOK_AGAIN);
        let control = Arc::new(Control { machines: Arc::clone(&machines), seed: settings.seed });
        control.serve(&dir, &service).or_fail(Kind::Other, doing())?;
        Ok(Self {
            dir,
            machines,
            control,
            service,
            shutdown,
            ports,
            _forwards: forwards,
            _lock: lock,
        })
    }

    /// Starts what runs on its machines, and waits until all of it is there.
    pub async fn launch(&self) -> Result<(), Failure> {
        let Machines { plan, subnet, .. } = &*self.machines;
        let control = plan.control();
        let up = plan.up(control, subnet.address(control), self.ports, &self.dir);
        self.keep_running(control, (up.clone(), up));
        let published = self.machines.dir_of(control).join("data");
        self.wait("the control plane", async || {
            Ok(matches!(context_file::of_data_dir(&published), Ok(Some(_))))
        })
        .await?;
        say(format!("The control plane runs in {}; the others join…", plan.places[0].city));
        let api = self.client()?;
        for machine in plan.with_part(Part::Location) {
            self.join(machine, &api, JoinTokenRole::Location).await?;
        }
        self.wait("the locations", async || {
            let locations = api.locations().await?;
            Ok(locations.iter().filter(|location| location.n_reachable > 0).count()
                == plan.n_locations)
        })
        .await?;
        for machine in plan.with_part(Part::Node) {
            self.join(machine, &api, JoinTokenRole::Node).await?;
        }
        self.wait("the nodes", async || {
            let locations = api.locations().await?;
            let n_nodes: u32 =
                locations.iter().map(|location: &LocationView| location.n_reachable).sum();
            Ok(usize::try_from(n_nodes) == Ok(plan.machines.len()))
        })
        .await
    }

    async fn join(&self, machine: usize, api: &Client, role: JoinTokenRole) -> Result<(), Failure> {
        let Machines { plan, subnet, .. } = &*self.machines;
        let code = plan.place_of(machine).code;
        let location = code.parse().or_fail(Kind::Other, "the name of a location")?;
        let location = Some(location);
        let request = JoinTokenRequest { location, role, ..JoinTokenRequest::default() };
        let token = api.create_join_token(&request).await?.token;
        let address = subnet.address(machine);
        let line = |token| plan.member(machine, address, token, &self.dir);
        self.keep_running(machine, (line(Some(&token)), line(None)));
        Ok(())
    }

    fn keep_running(&self, machine: usize, lines: (Vec<String>, Vec<String>)) {
        let (machines, end) = (Arc::clone(&self.machines), self.shutdown.clone());
        self.service
            .spawn("a machine", async move { machines.keep_running(machine, lines, end).await });
    }

    /// Waits until it is so. What cannot be known yet is not so.
    async fn wait(
        &self,
        what: &str,
        is_so: impl AsyncFn() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        loop {
            let outcome = is_so().await;
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            let n_machines = self.machines.plan.machines.len();
            if let Some(dead) =
                (0..n_machines).find(|idx| self.machines.n_deaths(*idx) >= MOST_DEATHS)
            {
                let name = &self.machines.plan.machines[dead].name;
                let message = format!("what runs on {name} keeps ending");
                return Err(Failure::new(Kind::Other, message).hint(self.machines.log_tail(dead)));
            }
            if self.shutdown.is_cancelled() {
                return Err(Failure::new(Kind::Other, "the world ended"));
            }
            if Instant::now() > deadline {
                let message = format!("{what}: not there in {} s", START.as_secs());
                let last = outcome.err().map(|failure| failure.to_string()).unwrap_or_default();
                let tails = (0..n_machines).map(|idx| self.machines.log_tail(idx));
                let tails: Vec<_> = tails.collect();
                let hint = format!("{last}\n{}", tails.join("\n"));
                return Err(Failure::new(Kind::TimedOut, message).hint(hint));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until a part of the world fails by itself, which ends the rest.
    pub async fn failed(&self) {
        self.shutdown.cancelled().await;
    }

    /// Where its control plane is reached from this machine, and the ingress of its location.
    pub fn endpoints(&self) -> Endpoints {
        let Machines { plan, subnet, .. } = &*self.machines;
        let control = plan.control();
        let Ports { api, registry } = self.ports;
        Endpoints::plain(
            format!("127.0.0.1:{api}"),
            format!("127.0.0.1:{registry}"),
            ingress_of(subnet.address(control)),
        )
    }

    /// The file that holds the token of the administrator.
    pub fn admin_token_file(&self) -> PathBuf {
        let control = self.machines.plan.control();
        self.machines.dir_of(control).join("data").join(ADMIN_TOKEN_FILE)
    }

    /// The token of the administrator.
    pub fn admin_token(&self) -> Result<String, Failure> {
        let token = fs::read_to_string(self.admin_token_file());
        let token = token.or_fail(Kind::Denied, "cannot read the administrator's token")?;
        Ok(token.trim().to_owned())
    }

    /// The API, by the token of the administrator.
    pub fn client(&self) -> Result<Client, Failure> {
        let api = self.endpoints().api.parse();
        let api = api.map_err(|why: String| Failure::new(Kind::Other, why))?;
        Ok(Client::new(api, &self.admin_token()?))
    }

    /// Does to the wire what is asked.
    pub fn tell(&self, command: &Command) -> Result<(), Failure> {
        let told = self.control.apply(command);
        told.or_fail(Kind::Invalid, "the wire cannot do that")
    }

    /// What the ingress of a location answers to a user of its place, who asks for `/` of `host`.
    pub fn get_there(&self, location: &str, host: &str) -> Result<String, Failure> {
        let doing = format!("cannot ask from {location}");
        let Machines { plan, subnet, .. } = &*self.machines;
        let machine = plan.machines.iter().position(|machine| machine.name == location);
        let machine = machine.ok_or_else(|| Failure::new(Kind::NotFound, doing.clone()))?;
        let ingress = ingress_of(subnet.address(machine));
        let ask = || run_client(request::get(&ingress, host));
        self.machines.within(machine, ask).or_fail(Kind::Other, doing)?
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.control.status()
    }

    /// Ends everything, and removes all that was kept.
    pub async fn end(self) -> Result<(), Failure> {
        let Self { dir, machines, control, service, shutdown, ports: _, _forwards, _lock } = self;
        shutdown.cancel();
        let outcome = service.run().await.or_fail(Kind::Other, "the world failed");
        drop((control, _forwards));
        let is_untidy = machines.is_untidy();
        drop(machines);
        if is_untidy {
            let message = format!("not everything ended in order; logs are in {}", dir.display());
            return Err(Failure::new(Kind::Other, message).hint("the next start there cleans up"));
        }
        sweep::remove_world(&dir)?;
        outcome
    }
}

/// A directory that this process alone may use, for as long as it has this.
struct Taken {
    /// Its path, without links and from the root.
    dir: PathBuf,
    lock: File,
    /// Locked, to be shared with the supervisors.
    hold: File,
}

/// Takes the directory, which must be empty or a world's, for all in it will be removed. Waits for what
/// runs of a world that was killed.
async fn take(dir: &Path) -> Result<Taken, Failure> {
    let doing = || format!("cannot use {}", dir.display());
    fs::create_dir_all(dir).or_fail(Kind::Other, doing())?;
    // What is mounted below is told by such a path.
    let dir = dir.canonicalize().or_fail(Kind::Other, doing())?;
    let is_empty = fs::read_dir(&dir).or_fail(Kind::Other, doing())?.next().is_none();
    if !is_empty && !dir.join(HOLD_FILE).exists() {
        let message = format!("{} is neither empty nor the directory of a world", dir.display());
        return Err(Failure::new(Kind::Invalid, message)
            .hint("all that is in the directory of a world is removed with it: name another one"));
    }
    // The users of instances pass it on the way to their file systems.
    let mode = fs::Permissions::from_mode(0o711);
    fs::set_permissions(&dir, mode).or_fail(Kind::Other, doing())?;
    let open = |name: &str| File::create(dir.join(name)).or_fail(Kind::Other, doing());
    let (hold, lock) = (open(HOLD_FILE)?, open("lock")?);
    if lock.try_lock().is_err() {
        let message = format!("a world runs in {} already", dir.display());
        return Err(Failure::new(Kind::Other, message)
            .hint("`longshore world status` shows it; another one needs a --data-dir of its own"));
    }
    let deadline = Instant::now() + END;
    while hold.try_lock().is_err() {
        if Instant::now() > deadline {
            let message = format!("machines of an earlier world in {} do not end", dir.display());
            let hint = format!("`fuser -v {}` names them", dir.join(HOLD_FILE).display());
            return Err(Failure::new(Kind::TimedOut, message).hint(hint));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(Taken { dir, lock, hold })
}

/// Makes the machines of a plan, this one the last, and the wire between them.
fn connect(plan: &WorldPlan, seed: u64) -> Result<(Carrier, Vec<Machine>, Subnet), Failure> {
    let doing = "cannot make the machines of the world";
    let subnet = Subnet::take().or_fail(Kind::Other, doing)?;
    let mut machines = Vec::new();
    for (idx, machine) in plan.machines.iter().enumerate() {
        let made = Machine::start(&machine.name, subnet.address(idx));
        machines.push(made.or_fail(Kind::Other, doing)?);
    }
    let link = format!("lsw{}", subnet.number());
    let own = here(&link, subnet.address(plan.machines.len()));
    machines.push(own.or_fail(Kind::Other, doing)?);
    let links: Vec<_> = machines.iter().map(Machine::link).collect();
    let wire = Wire::new(&plan.places, plan.positions(), seed);
    let carrier = Carrier::start(wire, &subnet, &links).or_fail(Kind::Other, doing)?;
    Ok((carrier, machines, subnet))
}

/// A port of loopback, the usual one when that is free: a world should not fail for what else runs here.
fn listen(usual: u16) -> std::io::Result<TcpListener> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    listen(usual).or_else(|_| listen(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_empty_directory_or_that_of_a_world_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter"), "dear").unwrap();
        let failure = take(dir.path()).await.err().unwrap();
        assert_eq!(failure.kind, Kind::Invalid, "{failure}");
        assert!(dir.path().join("letter").exists());

        fs::remove_file(dir.path().join("letter")).unwrap();
        let taken = take(dir.path()).await.unwrap();
        let failure = take(dir.path()).await.err().unwrap();
        assert!(failure.message.contains("runs in"), "{failure}");
        fs::create_dir(taken.dir.join("ams")).unwrap();
        drop(taken);
        take(dir.path()).await.unwrap();
    }
}
