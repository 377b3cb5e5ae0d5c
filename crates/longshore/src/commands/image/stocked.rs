//! `longshore image ls --node` and `--location`

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use longshore_types::{Digest, ImageState, LocationName, NodeImage, NodeName, Timestamp};
use serde::Serialize;

use crate::commands::place;
use crate::connection::{Connection, ConnectionOptions};
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// How many nodes are asked at the same time.
const AT_ONCE: usize = 16;

/// An image of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Row {
    location: LocationName,
    node: NodeName,
    #[serde(flatten)]
    image: NodeImage,
}

async fn ask(
    connection: &Connection,
    location: &LocationName,
    node: NodeName,
) -> Result<Vec<Row>, Failure> {
    let images = connection.api.node_images(location, &node).await?;
    let row = |image| Row { location: location.clone(), node: node.clone(), image };
    Ok(images.into_iter().map(row).collect())
}

/// Lists the images of a node.
pub async fn of_node(
    connection: &ConnectionOptions,
    node: NodeName,
    location: Option<LocationName>,
) -> Result<(), Failure> {
    let connection = connection.connect()?;
    let location = place::of_one(&connection.api, &node, location).await?;
    let rows = ask(&connection, &location, node).await?;
    let now = longshore_link::now();
    connection.output.data(&rows, |rows| render_node(rows, now))
}

/// Lists the images of all nodes of a location. One that cannot be asked is told of, and left out.
pub async fn of_location(
    connection: &ConnectionOptions,
    location: LocationName,
) -> Result<(), Failure> {
    let connection = connection.connect()?;
    let nodes = connection.api.location(&location).await?.nodes;
    let asked = nodes.into_iter().map(|summary| {
        let (connection, location) = (&connection, &location);
        async move { (summary.node.clone(), ask(connection, location, summary.node).await) }
    });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let (mut rows, mut silent) = (Vec::new(), None);
    for (node, answer) in answers {
        match answer {
            Ok(of_node) => rows.extend(of_node),
            Err(failure) => {
                connection.output.say(format!("node {node} is left out: {}", failure.message));
                silent = Some(failure);
            }
        }
    }
    match silent {
        Some(failure) if rows.is_empty() => Err(failure),
        _ => connection.output.data(&rows, |rows| render_location(rows)),
    }
}

/// What keeps an image, as few words as there may be.
fn kept_for(image: &NodeImage) -> String {
    let holds: Vec<_> =
        image.holds.iter().map(|hold| format!("{} {}", hold.reason, hold.by)).collect();
    if holds.is_empty() { "-".to_owned() } else { holds.join(", ") }
}

fn short(digest: &Digest) -> String {
    human::short_digest(&digest.to_string()).to_owned()
}

fn render_node(rows: &[Row], now: Timestamp) -> String {
    let mut table = Table::new(&["IMAGE", "STATE", "SIZE", "USED", "KEPT FOR"]);
    for Row { image, .. } in rows {
        table.row([
            short(&image.digest),
            image.state.to_string(),
            image.size.to_string(),
            human::age(now, image.last_used),
            kept_for(image),
        ]);
    }
    table_text(&table)
}

fn render_location(rows: &[Row]) -> String {
    let mut by_image: BTreeMap<Digest, Vec<&NodeImage>> = BTreeMap::new();
    for Row { image, .. } in rows {
        by_image.entry(image.digest).or_default().push(image);
    }
    let mut table = Table::new(&["IMAGE", "MOUNTED", "COMPLETE", "PULLING", "SIZE", "KEPT FOR"]);
    for (digest, nodes) in by_image {
        let count = |is: fn(&ImageState) -> bool| {
            nodes.iter().filter(|image| is(&image.state)).count().to_string()
        };
        // What keeps it is mostly the same everywhere: the node with most to say speaks for all.
        let kept = nodes.iter().max_by_key(|image| image.holds.len());
        let size = nodes.iter().map(|image| image.size).max().unwrap_or_default();
        table.row([
            short(&digest),
            count(|state| *state == ImageState::Mounted),
            count(|state| *state == ImageState::Complete),
            count(|state| matches!(state, ImageState::Pulling { .. })),
            size.to_string(),
            kept.map_or_else(String::new, |image| kept_for(image)),
        ]);
    }
    table_text(&table)
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, HoldReason, ImageHold};

    use super::*;

    fn row(node: &str, n: u8, state: ImageState, holds: &[(HoldReason, &str)]) -> Row {
        let hold =
            |(reason, by): &(HoldReason, &str)| ImageHold { reason: *reason, by: (*by).to_owned() };
        let image = NodeImage {
            digest: Digest::from_sha256([n; 32]),
            state,
            size: ByteCount::mib(900),
            last_used: Timestamp(1_000),
            holds: holds.iter().map(hold).collect(),
            note: None,
            given_up: false,
        };
        Row { location: "ams".parse().unwrap(), node: node.parse().unwrap(), image }
    }

    #[test]
    fn tables_of_images_fit_a_terminal() {
        let long = "team/a-rather-long-name-of-an-app r12";
        let pulling = ImageState::Pulling { done: ByteCount::mib(3), of: ByteCount::gib(12) };
        let rows = [
            row("n1", 1, ImageState::Mounted, &[(HoldReason::Release, long)]),
            row("n1", 2, pulling, &[]),
            row("n2", 1, ImageState::Complete, &[(HoldReason::Instance, "web-1"); 2]),
        ];
        let text = render_node(&rows[..2], Timestamp(61_000));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("sha256:010101010101  mounted") && text.contains("1m"), "{text}");
        assert!(text.contains("pulling 3 MiB of"), "{text}");
        let text = render_location(&rows);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let line = text.lines().find(|line| line.starts_with("sha256:0101")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[1..6], ["1", "1", "0", "900", "MiB"], "{text}");
        assert!(line.contains("instance web-1"), "{text}");
    }
}
