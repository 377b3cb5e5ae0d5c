//! `longshore nodes`

use longshore_api::links::NodeSummary;
use longshore_api::v1::LocationView;
use longshore_types::{LocationName, Timestamp};
use serde::Serialize;

use super::locations::state;
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// List the nodes of all locations
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A node and its location.
#[derive(Debug, Serialize)]
struct Row<'a> {
    location: &'a LocationName,
    #[serde(flatten)]
    node: &'a NodeSummary,
}

/// Lists the nodes.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let locations: Vec<LocationView> = connection.api.get("/v1/locations").await?;
    let rows: Vec<Row<'_>> = locations
        .iter()
        .flat_map(|location| {
            location.nodes.iter().map(|node| Row { location: &location.location, node })
        })
        .collect();
    let now = longshore_link::now();
    connection.output.data(&rows, |rows| render(rows, now))
}

fn render(rows: &[Row<'_>], now: Timestamp) -> String {
    let mut table = Table::new(&["NODE", "LOCATION", "STATE", "HEARD", "CPU", "MEMORY", "VERSION"]);
    for Row { location, node } in rows {
        table.row([
            node.node.to_string(),
            location.to_string(),
            state(node.reachable).to_owned(),
            human::age(now, node.reported_at),
            format!("{} of {}", node.promised.cpu, node.capacity.cpu),
            format!("{} of {}", node.promised.memory, node.capacity.memory),
            node.version.clone(),
        ]);
    }
    table_text(&table)
}
