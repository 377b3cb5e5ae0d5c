//! `longshore world`: many locations on this machine, as far from each other as on Earth.
//!
//! Every location is a real one, with a scheduler, an ingress, certificates and nodes of its own, in
//! processes of its own, on machines that are network namespaces ([`longshore_world`]). This process
//! holds the wire, starts a supervisor on each machine, and is told by a socket what to cut. However
//! it ends, the machines end: in order when it is asked to, by their life-lines when it is killed, and
//! what even those left at the next start.

mod control;
mod forward;
mod machines;
mod plan;
mod running;
mod show;
mod sweep;

use std::path::PathBuf;

use longshore_global::StoreChoice;
use longshore_types::Duration;
use longshore_world::Place;
use longshore_world::control::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::run_client;
use crate::context_file::Endpoints;
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::Inheritance;
use crate::logging::{self, LogFormat};
use crate::output::{Format, Output, say};
use crate::supervisor;

pub use plan::WorldSettings;
pub use running::World;
pub use show::render;

/// Where the world of a user is kept.
pub const DATA_DIR: &str = "/var/lib/longshore-world";
/// Where this machine is unless somebody says otherwise.
pub const USER_AT: &str = "lon";
const MOST_NODES: u64 = 4;

/// Run many locations on this machine, as far from each other as on Earth
///
/// Starts a control plane with a registry and its own location at the first place, and at each other one a
/// location that joins it, each on machines of its own: network namespaces on a wire that takes as long as
/// the distance. This machine is on the wire too, as a user. Everything ends with Ctrl-C, and nothing is kept.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How many locations, at places far from each other
    #[arg(long, value_name = "COUNT", default_value_t = 3, conflicts_with = "places",
        value_parser = clap::value_parser!(u64).range(1..=Place::all().len() as u64))]
    locations: u64,
    /// Where they are, by code or name of the city: ams,sin,tokyo
    #[arg(long, value_name = "PLACES", value_delimiter = ',', value_parser = Place::find)]
    places: Vec<&'static Place>,
    /// How many machines each location has
    #[arg(long, value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=MOST_NODES))]
    nodes: u64,
    /// Where the user is that this machine is
    #[arg(long, value_name = "PLACE", default_value = USER_AT, value_parser = Place::find)]
    user_at: &'static Place,
    /// What decides which packets are lost
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Where the state of the control plane is: embedded, or the members of an etcd as the machine of the control
    /// plane reaches them
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    store: StoreChoice,
    /// Do not make this the platform that later commands mean
    #[arg(long)]
    no_context: bool,
    #[command(flatten)]
    which: Which,
}

/// Which world.
#[derive(Debug, Clone, clap::Args)]
struct Which {
    /// The directory of the world
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Status(StatusOptions),
    Cut(CutOptions),
    Heal(HealOptions),
    Slow(SlowOptions),
}

/// Show the locations of the world, and what is cut or slow
#[derive(Debug, clap::Args)]
struct StatusOptions {
    #[command(flatten)]
    tell: Tell,
}

/// Cut the way between two places or machines, or between one and all others
///
/// Nothing passes from then on, not even what is under way. Machines of a place that is cut off still reach each
/// other, and so does the user when that is where they are. A machine is called as in the list of nodes: ams-2 is
/// the second of ams, and `cut ams-2 ams` leaves it alone there.
#[derive(Debug, clap::Args)]
struct CutOptions {
    /// The place or machine
    a: String,
    /// The other one [default: all others]
    b: Option<String>,
    #[command(flatten)]
    tell: Tell,
}

/// Mend what is cut or slow: everywhere, around one place or machine, or between two
#[derive(Debug, clap::Args)]
struct HealOptions {
    /// The place or machine [default: all]
    a: Option<String>,
    /// The other one [default: all others]
    b: Option<String>,
    #[command(flatten)]
    tell: Tell,
}

/// Slow down the way between two places, or between one and all others
///
/// What is not named is as usual again.
#[derive(Debug, clap::Args)]
struct SlowOptions {
    /// The place
    a: String,
    /// The other one [default: all others]
    b: Option<String>,
    /// How much longer each way takes, such as 200ms
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    delay: Duration,
    /// How many of a hundred packets are lost
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// How many kilobits pass in a second [default: all]
    #[arg(long, value_name = "KBIT")]
    rate: Option<u64>,
    #[command(flatten)]
    tell: Tell,
}

/// Which world is told, and how its answer is shown.
#[derive(Debug, Clone, clap::Args)]
struct Tell {
    #[command(flatten)]
    which: Which,
    /// Write data as JSON; `longshore schema VERB` says of which shape
    #[arg(long)]
    json: bool,
}

/// Runs a world, or tells one what to do.
pub fn run(options: Options) -> Result<(), Failure> {
    let (command, tell) = match options.verb {
        None => return start(options),
        Some(Verb::Status(StatusOptions { tell })) => (Command::Status, tell),
        Some(Verb::Cut(CutOptions { a, b, tell })) => (Command::Cut { a, b }, tell),
        Some(Verb::Heal(HealOptions { a, b, tell })) => (Command::Heal { a, b }, tell),
        Some(Verb::Slow(SlowOptions { a, b, delay, loss, rate, tell })) => {
            let delay_ms = u64::try_from(delay.0.as_millis()).unwrap_or(u64::MAX);
            (Command::Slow { a, b, delay_ms, loss_percent: loss, kbit_per_s: rate }, tell)
        }
    };
    let status = run_client(control::tell(&tell.which.data_dir, &command))?;
    let output = Output::new(if tell.json { Format::Json } else { Format::Text });
    output.data(&status, render)
}

fn start(options: Options) -> Result<(), Failure> {
    let Options { locations, places, nodes, user_at, seed, store, no_context, which, .. } = options;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let settings = WorldSettings {
        locations: WorldSettings::choose_places(&places, count(locations))?,
        n_nodes: count(nodes),
        user_at,
        seed,
        store,
        dir: which.data_dir,
    };
    begin(&settings)?;
    run_client(until_told(&settings, async |world: &World| {
        let endpoints = world.endpoints();
        if !no_context {
            supervisor::offer_context(&endpoints, &world.admin_token_file()).await;
        }
        Output::new(Format::Text).raw(render(&world.status()).as_bytes())?;
        say(next_commands(world, &settings));
        world.failed().await;
        Ok(())
    }))
}

/// What has to be done and known before a world is made.
pub fn begin(settings: &WorldSettings) -> Result<(), Failure> {
    // Held by nobody: of a shell that started this nothing is handed on.
    Inheritance::take().or_fail(Kind::Other, "cannot begin")?;
    logging::begin("world", &logging::filter_of_environment(), LogFormat::default());
    supervisor::check_machine(&settings.dir, &settings.dir)
}

/// Makes a world, does something with it until that is done or this process is told to end, and ends it.
pub async fn until_told(
    settings: &WorldSettings,
    work: impl AsyncFnOnce(&World) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let catch = |kind| signal(kind).or_fail(Kind::Other, "cannot begin");
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    say(format!(
        "Starting {} locations on this machine, in {}",
        settings.locations.len(),
        settings.dir.display()
    ));
    let world = World::make(settings).await?;
    let outcome = tokio::select! {
        outcome = async { world.launch().await?; work(&world).await } => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    say("\nEnding the world and all that runs in it…");
    let ended = world.end().await;
    outcome.and(ended)
}

/// What a person may want to try next.
pub fn next_commands(world: &World, settings: &WorldSettings) -> String {
    let Endpoints { api, registry, .. } = world.endpoints();
    let status = world.status();
    let last = status.locations.last();
    let (name, ingress) = last.map_or((USER_AT, ""), |last| (&last.name, &last.ingress));
    let dir = match settings.dir.to_str() {
        Some(DATA_DIR) | None => String::new(),
        Some(dir) => format!(" --data-dir {dir}"),
    };
    format!(
        "\nYou are in {}. API {api}, registry {registry}, dashboard {api}/ui\n\
         The world stays until Ctrl-C. In another terminal, as root:\n\
         \x20 longshore locations\n\
         \x20 longshore image pack /bin/busybox --push default/web:1 -- httpd -f -p 8080 -h /etc\n\
         \x20 longshore deploy        # with a longshore.toml that says image, count and port\n\
         \x20 curl -H 'Host: web.localhost' {ingress}/hostname\n\
         \x20 longshore world cut {name}{dir}         # and heal\n\
         \x20 longshore world slow {name} --delay 200ms --loss 2{dir}\n\
         \x20 longshore world status{dir}",
        settings.user_at.city
    )
}
