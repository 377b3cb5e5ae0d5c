//! The demo with several locations: an app at all of them, one of them cut off from the rest, and an
//! instance that users of all places reach.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_client::Project;
use longshore_global::StoreChoice;
use longshore_types::AppName;
use longshore_world::Place as City;
use longshore_world::control::{Command, LocationStatus};
use tokio::time::{sleep, timeout};

use super::platform::Place;
use super::{request, tour};
use crate::connection::Connection;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output::{Format, Output, say, table_text};
use crate::supervisor;
use crate::table::Table;
use crate::target::instances_of;
use crate::world::{self, World, WorldSettings};

/// How long who asks a place that is cut off waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long what was cut off may take to be heard of again.
const REUNION: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Shows a world of so many locations; until it is told to end, or once.
pub fn run(n_locations: usize, once: bool, data_dir: Option<PathBuf>) -> Result<(), Failure> {
    let place = match (once, data_dir) {
        (true, parent) => Place::temporary(parent.as_deref())?,
        (false, dir) => Place::Kept(dir.unwrap_or_else(|| world::DATA_DIR.into())),
    };
    let dir = match &place {
        Place::Kept(dir) => dir.clone(),
        Place::Temporary { dir, .. } => dir.path().join("world"),
    };
    let settings = WorldSettings {
        locations: WorldSettings::choose_places(&[], n_locations)?,
        n_nodes: 1,
        user_at: City::find(world::USER_AT)
            .map_err(|error| Failure::new(Kind::Other, error.to_string()))?,
        seed: 1,
        store: StoreChoice::Embedded,
        dir,
    };
    world::begin(&settings)?;
    let shown = crate::commands::run_client(world::until_told(&settings, async |world: &World| {
        show(world).await?;
        if !once {
            supervisor::offer_context(&world.endpoints(), &world.admin_token_file()).await;
            say(world::next_commands(world, &settings));
            world.failed().await;
        }
        Ok(())
    }));
    match place {
        Place::Kept(_) => shown,
        temporary @ Place::Temporary { .. } => shown.and(temporary.remove()),
    }
}

async fn show(world: &World) -> Result<(), Failure> {
    say(format!("\n{}", world::render(&world.status()).trim_end()));
    let endpoints = world.endpoints();
    let api = world.client()?;
    let token = world.admin_token()?;
    let connection = Connection { api, token, ca: None, output: Output::new(Format::Text) };
    let project = connection.api.project(&Default::default());
    say("");
    tour::pack_and_push(&connection, &endpoints).await?;
    let locations = world.status().locations;
    let count = u32::try_from(locations.len()).unwrap_or(u32::MAX);
    say(format!("Deploying {count} instances of it; nobody says where"));
    let app = tour::deploy(&project, count).await?;
    say(format!("\n{}", where_they_are(&project, &app).await?.trim_end()));

    say("\nA user in London asks each location:");
    for location in &locations {
        ask(world, location, From::Here).await?;
    }
    let Some(last) = locations.last() else { return Ok(()) };
    cut_off(world, last).await?;
    say(format!("\nMending what was cut. {} is heard of again, and is what it was:", last.city));
    world.tell(&Command::Heal { a: None, b: None })?;
    reunion(&connection, last).await?;
    ask(world, last, From::Here).await?;
    say(format!("\n{}", where_they_are(&project, &app).await?.trim_end()));
    only_one(world, &project, &app).await?;
    // For whoever goes on to cut something off.
    project.scale(&app, count).await?;
    Ok(())
}

/// Leaves one instance, which users of all places reach.
async fn only_one(world: &World, project: &Project, app: &AppName) -> Result<(), Failure> {
    say("\nOne instance only. A location that has none passes requests on to the one that has it:");
    project.scale(app, 1).await?;
    let is_so = async {
        while instances_of(project, app).await?.len() != 1 {
            sleep(LOOK_AGAIN).await;
        }
        for location in &world.status().locations {
            // The others learn of it within moments.
            while ask(world, location, From::Here).await.is_err() {
                sleep(LOOK_AGAIN).await;
            }
        }
        say(format!("\n{}", where_they_are(project, app).await?.trim_end()));
        Ok(())
    };
    let too_late = || Failure::new(Kind::TimedOut, "not every location reaches the one instance");
    timeout(REUNION, is_so).await.map_err(|_| too_late())?
}

async fn cut_off(world: &World, location: &LocationStatus) -> Result<(), Failure> {
    let LocationStatus { name, city, .. } = location;
    say(format!("\nCutting {city} off from everybody else (longshore world cut {name}):"));
    world.tell(&Command::Cut { a: name.clone(), b: None })?;
    match ask(world, location, From::Here).await {
        Err(_) => say("  London gets no answer from there"),
        Ok(()) => {
            return Err(Failure::new(
                Kind::Other,
                format!("{city} answers although it is cut off"),
            ));
        }
    }
    say(format!(
        "A user in {city} does: the location has its own scheduler, ingress and nodes, and goes on"
    ));
    for _ in 0..3 {
        ask(world, location, From::There).await?;
    }
    Ok(())
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// The user that this machine is.
    Here,
    /// A user at the place of the location.
    There,
}

/// Asks the ingress of a location once, and shows what it says.
async fn ask(world: &World, location: &LocationStatus, from: From) -> Result<(), Failure> {
    let host = format!("{}.localhost", tour::APP);
    let begun = Instant::now();
    let answer = match from {
        From::Here => {
            let authority = location.ingress.trim_start_matches("http://");
            match timeout(PATIENCE, request::get(authority, &host)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Failure::new(Kind::TimedOut, "no answer")),
            }
        }
        From::There => world.get_there(&location.name, &host)?,
    };
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    say(format!("  {:<13} {:>8}  {}", location.city, human::micros(took), answer.trim_end()));
    Ok(())
}

/// Waits until the control plane has heard of a location.
async fn reunion(connection: &Connection, location: &LocationStatus) -> Result<(), Failure> {
    let is_back = async {
        loop {
            let locations = connection.api.locations().await?;
            let mut it = locations.iter().filter(|one| one.location.as_str() == location.name);
            if it.any(|one| one.reachable) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    let too_late = || Failure::new(Kind::TimedOut, format!("{} does not come back", location.city));
    timeout(REUNION, is_back).await.map_err(|_| too_late())?
}

async fn where_they_are(project: &Project, app: &AppName) -> Result<String, Failure> {
    let mut table = Table::new(&["INSTANCE", "LOCATION", "PHASE", "RESTARTS"]);
    for instance in instances_of(project, app).await? {
        table.row([
            instance.id().to_string(),
            instance.location.to_string(),
            instance.observed.phase.as_str().to_owned(),
            instance.observed.restarts.to_string(),
        ]);
    }
    Ok(table_text(&table))
}
