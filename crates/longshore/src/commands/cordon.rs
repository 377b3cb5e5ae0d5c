//! `longshore cordon` and `longshore uncordon`

use longshore_client::{Client, Place};
use longshore_types::{Cordon, LocationName, NodeName};
use schemars::JsonSchema;
use serde::Serialize;

use super::place::{PlaceOptions, shown};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::human;

/// Place nothing new on a node, or at a whole location; what is there stays
///
/// Of something that is being drained it ends that: what has not left stays.
#[derive(Debug, clap::Args)]
pub struct CordonOptions {
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Let new instances come to a node, or to a location, again
///
/// Nothing moves back by itself. A node that was removed may join again.
#[derive(Debug, clap::Args)]
pub struct UncordonOptions {
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What holds of a place now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Closed {
    location: LocationName,
    /// The whole location when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    /// Nothing once it is open again.
    #[serde(skip_serializing_if = "Option::is_none")]
    cordon: Option<Cordon>,
    /// How many instances are there, and stay; absent where it was opened, or its location cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<u32>,
}

impl Closed {
    fn new(place: &Place, cordon: Option<Cordon>, instances: Option<u32>) -> Self {
        let (location, node) = place.names();
        Self { location: location.clone(), node: node.cloned(), cordon, instances }
    }
}

/// Closes.
pub async fn cordon(options: CordonOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let place = options.place.find(&connection.api).await?;
    let cordon = connection.api.cordon(&place, false).await?;
    // It is closed, whether or not its location can be asked.
    let n_there = n_there(&connection.api, &place).await.ok();
    let closed = Closed::new(&place, Some(cordon), n_there);
    connection.output.data(&closed, |_| cordoned(&place, n_there))
}

/// How many instances a place has, as its location said last.
async fn n_there(api: &Client, place: &Place) -> Result<u32, Failure> {
    let (location, node) = place.names();
    let view = api.location(location).await?;
    let of_node = |name: &NodeName| {
        view.nodes.iter().find(|node| node.node == *name).map(|node| node.instances)
    };
    Ok(node.map_or(view.instances, |node| of_node(node).unwrap_or_default()))
}

fn cordoned(place: &Place, n_there: Option<u32>) -> String {
    let stays = match n_there {
        None => "what is there stays".to_owned(),
        Some(0) => "nothing is there".to_owned(),
        Some(1) => "1 instance stays".to_owned(),
        Some(n) => format!("{} stay", human::count(n as usize, "instance")),
    };
    format!("{}: cordoned; {stays}, nothing moves, and nothing new starts there\n", shown(place))
}

/// Opens.
pub async fn uncordon(options: UncordonOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let place = options.place.find(&connection.api).await?;
    connection.api.uncordon(&place).await?;
    let opened = Closed::new(&place, None, None);
    connection.output.data(&opened, |_| format!("{}: open\n", shown(&place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_that_what_is_there_stays() {
        let node = Place::Node("ams".parse().unwrap(), "n1".parse().unwrap());
        let none = "node n1 of ams: cordoned; nothing is there, nothing moves, and nothing new starts there\n";
        assert_eq!(cordoned(&node, Some(0)), none);
        assert!(cordoned(&node, Some(1)).contains("; 1 instance stays, nothing moves"));
        assert!(cordoned(&node, None).contains("; what is there stays, nothing moves"));
        let location = Place::Location("ams".parse().unwrap());
        assert!(
            cordoned(&location, Some(7)).starts_with("location ams: cordoned; 7 instances stay, ")
        );
    }
}
