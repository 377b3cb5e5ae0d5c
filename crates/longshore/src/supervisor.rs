//! `longshore up`: every role of the platform on this machine, each a process of its own, kept
//! running until it is told to end.
//!
//! The supervisor holds what must outlive a role: the sockets, the locks, the tokens. It decides
//! nothing else, so that it has little reason ever to fail. When it is killed, the roles end by
//! themselves (see [`crate::inheritance`]), the containers go on, and the next `up` takes over.

mod backoff;
mod child;
mod context;
mod doctor;
mod home;
mod member;
mod options;
mod plan;
mod preflight;
mod readiness;
mod settings;
mod sockets;
mod tls;

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use child::{Child, RolePlan, Surroundings};
use home::{Contents, Home};
use options::ContextUse;
use plan::Reached;
use preflight::{Facts, Obstacle};
use settings::Settings;
use sockets::{LinkSockets, PublicSockets};
use tls::UsersTls;

use crate::context_file::{self, Endpoints};
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::{Inheritance, LifeLine};
use crate::logging;
use crate::output::{Format, Output};

pub use child::ask_to_end;
pub use context::offer as offer_context;
pub use doctor::{DoctorOptions, Findings, run as doctor};
pub use home::is_mount_below;
pub use member::{
    LocationJoinOptions, LocationStartOptions, NodeJoinOptions, NodeStartOptions,
    RegistryJoinOptions, RegistryStartOptions, join_location, join_node, join_registry,
    start_location, start_node, start_registry,
};
pub use options::UpOptions;
pub use plan::own_program;
pub use preflight::find_program;

/// Runs the platform until it is told to end.
pub fn run(options: UpOptions) -> Result<(), Failure> {
    let settings = options.settings()?;
    if options.dump_config {
        return Output::new(Format::Text).raw(settings.dump().as_bytes());
    }
    let inheritance = Inheritance::take().or_fail(Kind::Other, "cannot begin")?;
    logging::begin("up", &settings.log, settings.log_format);
    let (home, public) = take_machine(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(Kind::Other, "cannot begin")?;
    runtime.block_on(supervise(settings, options.context_use(), (home, public), inheritance))
}

/// Checks that the machine has what is needed, and takes what the platform needs alone. All that
/// stands in the way is told at once.
fn take_machine(settings: &Settings) -> Result<(Home, PublicSockets), Failure> {
    let facts = Facts::observe(&settings.data_dir, &settings.run_dir);
    let mut obstacles = facts.obstacles();
    // Before the ports, so that a second `up` hears of the first and not of its ports.
    let home = match facts.is_root {
        true => Some(Home::take(&settings.data_dir, &settings.run_dir, Contents::Platform)?),
        false => None,
    };
    let public = PublicSockets::bind(settings).map_err(|taken| obstacles.extend(taken)).ok();
    match (home, public) {
        (Some(home), Some(public)) if obstacles.is_empty() => Ok((home, public)),
        _ => Err(refusal(&obstacles)),
    }
}

/// Checks that this machine has what the platform needs, and takes nothing.
pub fn check_machine(data_dir: &Path, run_dir: &Path) -> Result<(), Failure> {
    match Facts::observe(data_dir, run_dir).obstacles() {
        obstacles if obstacles.is_empty() => Ok(()),
        obstacles => Err(refusal(&obstacles)),
    }
}

fn refusal(obstacles: &[Obstacle]) -> Failure {
    let mut message = String::from("the platform cannot run here:");
    for Obstacle { what, remedy } in obstacles {
        message.push_str(&format!("\n- {what}\n  {remedy}"));
    }
    Failure::new(Kind::Other, message)
}

async fn supervise(
    settings: Settings,
    context_use: ContextUse,
    (home, public): (Home, PublicSockets),
    inheritance: Inheritance,
) -> Result<(), Failure> {
    let listening = public.listening()?;
    let tls = UsersTls::prepare(&settings.tls, &settings.to_users(), &home)?;
    let endpoints = listening.endpoints(tls.as_ref(), &home.links_dir());
    let metrics = public.metrics_targets()?;
    let doing = format!("cannot use {}", home.run_dir().display());
    home.prepare_run_dir().or_fail(Kind::Other, doing)?;
    let links = LinkSockets::bind(&settings, &home.links_dir())?;
    let reached = Reached { listening, endpoints: endpoints.clone(), tls: tls.clone() };
    let plans = plan::plan_roles(&settings, &home, &reached, (public, links));
    let variables = variables(&settings);
    let roles = Roles::start(plans, home, variables, settings.stop_instances)?;
    let data_dir = roles.surroundings.home.data_dir();
    context_file::publish_metrics(data_dir, &metrics)
        .or_fail(Kind::Other, "cannot write where metrics are asked for")?;
    let announced = async |roles: &Roles| {
        announce(roles, &endpoints, context_use).await;
        if let Some(tls) = tls.filter(|tls| tls.made) {
            tls::keep_made(&tls, &roles.surroundings.home).await;
        }
    };
    roles.run(inheritance, announced).await
}

/// Publishes where the platform is reached once it is ready.
async fn announce(roles: &Roles, endpoints: &Endpoints, context_use: ContextUse) {
    let home = &roles.surroundings.home;
    let children: Vec<_> = roles.waves.iter().flatten().collect();
    let links = home.links_dir();
    readiness::wait((endpoints, &links), &home.admin_token_file(), &children).await;
    if let Err(error) = context_file::publish(home.data_dir(), endpoints) {
        tracing::error!(%error, "cannot write where the platform is reached");
    }
    let Endpoints { api, registry, ingress, .. } = endpoints;
    let registry = if registry.is_empty() { "on another machine" } else { registry };
    tracing::info!(
        "ready: API {api}, registry {registry}, ingress http://{ingress}, dashboard {api}/ui"
    );
    if context_use == ContextUse::Offer {
        context::offer(endpoints, &home.admin_token_file()).await;
    }
}

/// Ends this process in order when whoever started it asked to be outlived by nothing and is gone.
async fn watch_own_supervisor(inheritance: Inheritance, end: CancellationToken) {
    if let Err(error) = inheritance.watch(end).await {
        tracing::warn!(%error, "cannot watch the process that started this one");
    }
}

/// The roles while they run.
struct Roles {
    surroundings: Arc<Surroundings>,
    /// In the order in which they end.
    waves: Vec<Vec<Child>>,
    /// Whether the instances end with them.
    stop_instances: bool,
}

impl Roles {
    fn start(
        plans: Vec<Vec<RolePlan>>,
        home: Home,
        variables: Vec<(&'static str, String)>,
        stop_instances: bool,
    ) -> Result<Self, Failure> {
        let surroundings = Arc::new(Surroundings {
            exe: own_program().or_fail(Kind::Other, "cannot find our own program")?,
            home,
            life_line: LifeLine::new().or_fail(Kind::Other, "cannot begin")?,
            variables,
            kill: CancellationToken::new(),
        });
        let start = |plan| Child::keep_running(plan, Arc::clone(&surroundings));
        let waves = plans.into_iter().map(|wave| wave.into_iter().map(start).collect()).collect();
        Ok(Self { surroundings, waves, stop_instances })
    }

    /// Keeps them running until this process is told to end, then ends them. `announce` is what is done
    /// meanwhile.
    async fn run(
        self,
        inheritance: Inheritance,
        announce: impl AsyncFnOnce(&Self),
    ) -> Result<(), Failure> {
        let mut signals = Signals::catch().or_fail(Kind::Other, "cannot catch signals")?;
        let end = CancellationToken::new();
        tokio::spawn(watch_own_supervisor(inheritance, end.clone()));
        tokio::select! {
            () = async { announce(&self).await; std::future::pending().await } => {}
            name = signals.next() => tracing::info!("{name}: shutting down"),
            () = end.cancelled() => {}
        }
        let kill = self.surroundings.kill.clone();
        tokio::select! {
            done = self.end() => done,
            never = async {
                let name = signals.next().await;
                tracing::warn!("{name} again: killing the roles");
                kill.cancel();
                std::future::pending().await
            } => never,
        }
    }

    /// Ends the roles, wave by wave.
    async fn end(self) -> Result<(), Failure> {
        let home = &self.surroundings.home;
        home.unpublish().or_fail(Kind::Other, "cannot forget where the platform was reached")?;
        if self.stop_instances {
            let file = home.stop_instances_file();
            std::fs::write(&file, "").or_fail(Kind::Other, "cannot ask for the instances' end")?;
        }
        for wave in self.waves {
            futures_util::future::join_all(wave.into_iter().map(Child::end)).await;
        }
        if self.stop_instances {
            home.clear_run_dir();
        }
        tracing::info!("ended");
        Ok(())
    }
}

/// What the roles are told by variables.
fn variables(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (logging::VARIABLE, settings.log.clone()),
        (logging::FORMAT_VARIABLE, settings.log_format.as_str().to_owned()),
    ];
    if let Some(endpoint) = &settings.otlp_endpoint {
        variables.push((longshore_telemetry::traces::VARIABLE, endpoint.clone()));
    }
    variables
}

/// The signals that ask for the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
