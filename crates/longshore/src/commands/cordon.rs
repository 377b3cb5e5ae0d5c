//! `longshore cordon` and `longshore uncordon`

use longshore_client::Place;
use longshore_types::{Cordon, LocationName, NodeName};
use schemars::JsonSchema;
use serde::Serialize;

use super::place::{PlaceOptions, shown};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;

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
}

impl Closed {
    fn new(place: &Place, cordon: Option<Cordon>) -> Self {
        let (location, node) = match place.clone() {
            Place::Location(location) => (location, None),
            Place::Node(location, node) => (location, Some(node)),
        };
        Self { location, node, cordon }
    }
}

/// Closes.
pub async fn cordon(options: CordonOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let place = options.place.find(&connection.api).await?;
    let cordon = connection.api.cordon(&place, false).await?;
    let closed = Closed::new(&place, Some(cordon));
    connection.output.data(&closed, |_| format!("{}: cordoned\n", shown(&place)))
}

/// Opens.
pub async fn uncordon(options: UncordonOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let place = options.place.find(&connection.api).await?;
    connection.api.uncordon(&place).await?;
    let opened = Closed::new(&place, None);
    connection.output.data(&opened, |_| format!("{}: open\n", shown(&place)))
}
