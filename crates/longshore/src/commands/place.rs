//! A location or a node, as a command line names it, and how it stands in a word.

use longshore_api::links::NodeSummary;
use longshore_api::v1::LocationView;
use longshore_client::{Client, Place};
use longshore_types::{Cordon, LocationName, NodeName, Traits};

use crate::failure::{Failure, Kind};

/// A node, or a whole location.
#[derive(Debug, clap::Args)]
pub struct PlaceOptions {
    /// The node; a whole location without it
    #[arg(required_unless_present = "location")]
    node: Option<NodeName>,
    /// The location, or that of the node where several have one of that name
    #[arg(long, value_name = "NAME")]
    location: Option<LocationName>,
}

impl PlaceOptions {
    /// What is meant.
    pub async fn find(self, api: &Client) -> Result<Place, Failure> {
        match (self.node, self.location) {
            (None, Some(location)) => Ok(Place::Location(location)),
            (Some(node), location) => Ok(Place::Node(of_one(api, &node, location).await?, node)),
            (None, None) => Err(Failure::new(Kind::Usage, "name a node, or a --location")),
        }
    }
}

/// The location of a node: the one that is named, or the only one that has such a node. A node that was
/// removed is at the only location that there is.
pub async fn of_one(
    api: &Client,
    node: &NodeName,
    named: Option<LocationName>,
) -> Result<LocationName, Failure> {
    if let Some(location) = named {
        return Ok(location);
    }
    let locations = api.locations().await?;
    let has_it = |location: &&LocationView| location.nodes.iter().any(|one| one.node == *node);
    let found: Vec<_> = locations.iter().filter(has_it).collect();
    match (found.as_slice(), locations.as_slice()) {
        ([one], _) => Ok(one.location.clone()),
        ([], [only]) => Ok(only.location.clone()),
        ([], _) => Err(Failure::new(Kind::NotFound, format!("there is no node {node}"))
            .hint("`longshore nodes` lists them; one that was removed needs --location")),
        (several, _) => {
            let names: Vec<_> = several.iter().map(|one| one.location.to_string()).collect();
            let message = format!("a node {node} is at {}", names.join(" and at "));
            Err(Failure::new(Kind::Usage, message).hint("say which one with --location"))
        }
    }
}

/// As messages name it.
pub fn shown(place: &Place) -> String {
    match place {
        Place::Location(location) => format!("location {location}"),
        Place::Node(location, node) => format!("node {node} of {location}"),
    }
}

/// How a node stands.
pub fn node_state(node: &NodeSummary) -> &'static str {
    match node.reachable {
        false if node.lost => "lost",
        reachable => state(reachable, node.cordon.as_ref(), node.drained),
    }
}

/// In which country it is.
pub fn country(traits: &Traits) -> String {
    traits.country.map_or("-".to_owned(), |country| country.to_string())
}

/// The labels that it has.
pub fn labels(traits: &Traits) -> String {
    let labels: Vec<_> = traits.labels.iter().map(ToString::to_string).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(" ") }
}

/// How a location stands.
pub fn location_state(location: &LocationView) -> &'static str {
    state(location.reachable, location.cordon.as_ref(), location.drained)
}

fn state(reachable: bool, cordon: Option<&Cordon>, drained: bool) -> &'static str {
    match cordon {
        _ if !reachable => "silent",
        None => "reachable",
        Some(_) if drained => "drained",
        Some(cordon) if cordon.drains => "draining",
        Some(_) => "cordoned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stands_in_a_word() {
        let cordon =
            |drains| Some(Cordon { since: Default::default(), by: None, drains, removed: false });
        for (reachable, cordon, drained, word) in [
            (true, None, false, "reachable"),
            (false, cordon(true), true, "silent"),
            (true, cordon(false), false, "cordoned"),
            (true, cordon(true), false, "draining"),
            (true, cordon(true), true, "drained"),
        ] {
            assert_eq!(state(reachable, cordon.as_ref(), drained), word);
        }
    }
}
