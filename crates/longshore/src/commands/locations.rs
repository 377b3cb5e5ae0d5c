//! `longshore locations`

use longshore_api::v1::LocationView;
use longshore_client::Place;
use longshore_types::LocationName;
use longshore_types::units::Capacity;

use super::{place, removal};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::output::table_text;
use crate::table::Table;

/// List the locations, or remove one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Rm(RemoveOptions),
}

/// Forget a location that joined and is empty or silent
///
/// Says first what will start elsewhere. Its certificates open nothing from then on. What a silent one may still run goes
/// on there, and is started elsewhere as well: to remove it is to declare it lost.
#[derive(Debug, clap::Args)]
struct RemoveOptions {
    /// The location
    location: LocationName,
    /// Say what would start elsewhere, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

async fn remove(options: RemoveOptions) -> Result<(), Failure> {
    let RemoveOptions { location, dry_run, connection } = options;
    let mode = if dry_run { removal::Mode::DryRun } else { removal::Mode::Remove };
    removal::remove(&connection.connect()?, &Place::Location(location), mode).await
}

/// Lists the locations, or removes one.
pub async fn run(options: Options) -> Result<(), Failure> {
    if let Some(Verb::Rm(options)) = options.verb {
        return remove(options).await;
    }
    let connection = options.connection.connect()?;
    let locations = connection.api.locations().await?;
    connection.output.data(&locations, |locations| render(locations))
}

fn render(locations: &[LocationView]) -> String {
    let mut table = Table::new(&[
        "LOCATION",
        "COUNTRY",
        "STATE",
        "NODES",
        "INSTANCES",
        "CPU",
        "MEMORY",
        "DISK",
    ]);
    for location in locations {
        let sum = |part: fn(&longshore_api::links::NodeSummary) -> Capacity| {
            location.nodes.iter().map(part).fold(Capacity::default(), Capacity::plus)
        };
        let (promised, capacity) = (sum(|node| node.promised), sum(|node| node.capacity));
        let reachable = location.nodes.iter().filter(|node| node.reachable).count();
        table.row([
            location.location.to_string(),
            place::country(&location.traits),
            place::location_state(location).to_owned(),
            format!("{reachable}/{}", location.nodes.len()),
            location.instances.to_string(),
            format!("{} of {}", promised.cpu, capacity.cpu),
            format!("{} of {}", promised.memory, capacity.memory),
            format!("{} of {}", promised.disk, capacity.disk),
        ]);
    }
    let mut text = table_text(&table);
    for LocationView { location, traits, .. } in locations {
        if !traits.labels.is_empty() {
            text.push_str(&format!("\n{location}: {}\n", place::labels(traits)));
        }
    }
    for LocationView { location, traits, joined_for, .. } in locations {
        if let Some(country) = joined_for.filter(|country| traits.country != Some(*country)) {
            text.push_str(&format!(
                "\n{location}: joined for {country} and does not say that it is there: no app with a \
                 jurisdiction goes there; start it with --country {country}\n"
            ));
        }
    }
    for location in locations.iter().filter(|location| !location.round_trip_micros.is_empty()) {
        text.push_str(&format!("\nround trips from {}: {}\n", location.location, ways(location)));
    }
    for shortfall in locations.iter().flat_map(|location| &location.shortfalls) {
        text.push_str(&format!(
            "\n{}/{}: {} missing: {}\n",
            shortfall.project, shortfall.app, shortfall.missing, shortfall.decision.why
        ));
    }
    for one in locations.iter().flat_map(|location| &location.staying) {
        text.push_str(&format!("\n{} on {}: {}\n", one.instance, one.node, one.why));
    }
    for (location, app) in locations.iter().flat_map(|l| l.staying_apps.iter().map(move |a| (l, a)))
    {
        let (project, name, count) = (&app.project, &app.app, app.count);
        text.push_str(&format!(
            "\n{project}/{name}: {count} still at {}: {}\n",
            location.location, app.why
        ));
    }
    text
}

/// The nearest other locations, as the ingresses measure them.
fn ways(location: &LocationView) -> String {
    const SHOWN: usize = 8;
    let mut ways: Vec<_> = location.round_trip_micros.iter().map(|(to, took)| (took, to)).collect();
    ways.sort();
    let one = |(took, to): &(&u64, &LocationName)| {
        let millis = **took as f64 / 1000.0;
        if millis < 10.0 { format!("{to} {millis:.1} ms") } else { format!("{to} {millis:.0} ms") }
    };
    ways.iter().take(SHOWN).map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_that_is_not_where_it_joined_for_is_told_of() {
        let view = |country: serde_json::Value| -> LocationView {
            let traits = serde_json::json!({"country": country});
            let view = serde_json::json!({
                "location": "ams", "reachable": true, "instances": 0, "joined_for": "NL", "traits": traits,
            });
            serde_json::from_value(view).unwrap()
        };
        let told = "ams: joined for NL and does not say that it is there";
        let text = render(&[view(serde_json::Value::Null)]);
        assert!(text.contains(told) && text.contains("start it with --country NL"), "{text}");
        assert!(!render(&[view("NL".into())]).contains(told));
    }

    #[test]
    fn the_nearest_others_are_shown_first() {
        let view = serde_json::json!({
            "location": "ams", "reachable": true, "instances": 0,
            "round_trip_micros": {"sin": 161_400, "fra": 6_240, "lhr": 9_990},
        });
        let view: LocationView = serde_json::from_value(view).unwrap();
        let text = render(std::slice::from_ref(&view));
        let expected = "round trips from ams: fra 6.2 ms, lhr 10.0 ms, sin 161 ms\n";
        assert!(text.contains(expected), "{text}");
        let alone = LocationView { round_trip_micros: Default::default(), ..view };
        assert!(!render(&[alone]).contains("round trips"));
    }
}
