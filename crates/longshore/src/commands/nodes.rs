//! `longshore nodes`

use longshore_api::links::NodeSummary;
use longshore_api::v1::{LocationView, Staying};
use longshore_client::Place;
use longshore_types::{LocationName, NodeGpu, NodeName, Timestamp, Traits};
use serde::Serialize;

use super::place::{self, of_one};
use super::removal;
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// List the nodes of all locations, or remove one
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

/// Forget a node that is drained or lost
///
/// Says first what will start on others. It is refused from then on, and what it may still run ends when it comes back; `uncordon` lets it in
/// again.
#[derive(Debug, clap::Args)]
struct RemoveOptions {
    /// The node
    node: NodeName,
    /// Its location, where several have a node of that name
    #[arg(long, value_name = "NAME")]
    location: Option<LocationName>,
    /// Say what would start on others, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A node and its location.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Row {
    location: LocationName,
    #[serde(flatten)]
    node: NodeSummary,
    /// What has not left it when it is drained, of the projects that the caller may look at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    staying: Vec<Staying>,
}

impl Row {
    /// Those of a location.
    fn of(view: LocationView) -> Vec<Self> {
        let LocationView { location, nodes, staying, .. } = view;
        let row = |node: NodeSummary| {
            let here = staying.iter().filter(|one| one.node == node.node);
            Self { location: location.clone(), staying: here.cloned().collect(), node }
        };
        nodes.into_iter().map(row).collect()
    }
}

async fn remove(options: RemoveOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let RemoveOptions { node, location, dry_run, .. } = options;
    let location = of_one(&connection.api, &node, location).await?;
    let mode = if dry_run { removal::Mode::DryRun } else { removal::Mode::Remove };
    removal::remove(&connection, &Place::Node(location, node), mode).await
}

/// Lists the nodes, or removes one.
pub async fn run(options: Options) -> Result<(), Failure> {
    if let Some(Verb::Rm(options)) = options.verb {
        return remove(options).await;
    }
    let connection = options.connection.connect()?;
    let locations = connection.api.locations().await?;
    let rows: Vec<Row> = locations.into_iter().flat_map(Row::of).collect();
    let now = longshore_link::now();
    connection.output.data(&rows, |rows| render(rows, now))
}

fn render(rows: &[Row], now: Timestamp) -> String {
    let mut table =
        Table::new(&["NODE", "LOCATION", "STATE", "HEARD", "CPU", "MEMORY", "DISK", "VERSION"]);
    for Row { location, node, .. } in rows {
        table.row([
            node.node.to_string(),
            location.to_string(),
            place::node_state(node).to_owned(),
            human::age(now, node.reported_at),
            format!("{} of {}", node.promised.cpu, node.capacity.cpu),
            format!("{} of {}", node.promised.memory, node.capacity.memory),
            format!("{} of {}", node.promised.disk, node.capacity.disk),
            node.version.clone(),
        ]);
    }
    let mut text = table_text(&table);
    let more = [render_traits(rows), render_images(rows), render_gpus(rows), render_runtimes(rows)];
    for more in more {
        if !more.is_empty() {
            text.push('\n');
            text.push_str(&more);
        }
    }
    for one in rows.iter().flat_map(|row| &row.staying) {
        text.push_str(&format!("\n{} on {}: {}\n", one.instance, one.node, one.why));
    }
    text
}

/// What is said of each node, and of its location; nothing where nothing is said of any.
fn render_traits(rows: &[Row]) -> String {
    let mut table = Table::new(&["NODE", "COUNTRY", "LABELS"]);
    for Row { node, .. } in rows {
        table.row([
            node.node.to_string(),
            place::country(&node.traits),
            place::labels(&node.traits),
        ]);
    }
    let says = |Row { node, .. }: &Row| node.traits != Traits::default();
    if rows.iter().any(says) { table_text(&table) } else { String::new() }
}

/// The GPUs of each node, those that are alike in a line; nothing where none has any.
fn render_gpus(rows: &[Row]) -> String {
    let mut table = Table::new(&["NODE", "GPU", "MODEL", "MEMORY"]);
    let mut any = false;
    for Row { node, .. } in rows {
        let mut alike: Vec<(usize, Vec<usize>)> = Vec::new();
        for (idx, gpu) in node.gpus.iter().enumerate() {
            match alike.iter_mut().find(|(first, _)| node.gpus[*first] == *gpu) {
                Some((_, others)) => others.push(idx),
                None => alike.push((idx, vec![idx])),
            }
        }
        for (first, all) in alike {
            any = true;
            let NodeGpu { model, memory, promised, .. } = &node.gpus[first];
            let indices: Vec<_> = all.iter().map(ToString::to_string).collect();
            table.row([
                node.node.to_string(),
                indices.join(","),
                model.to_string(),
                format!("{promised} of {memory}"),
            ]);
        }
    }
    if any { table_text(&table) } else { String::new() }
}

/// How images get to the kernel of each node; nothing where none says so.
fn render_images(rows: &[Row]) -> String {
    let mut table = Table::new(&["NODE", "IMAGES ARE MOUNTED FROM"]);
    for Row { node, .. } in rows {
        let mount = node.image_mount.map_or_else(|| "-".to_owned(), |mount| mount.to_string());
        table.row([node.node.to_string(), mount]);
    }
    let says = |Row { node, .. }: &Row| node.image_mount.is_some();
    if rows.iter().any(says) { table_text(&table) } else { String::new() }
}

/// The capability table: what makes containers on each node, and what that cannot do. The reasons are
/// in the JSON form, and in the refusal of a deploy that meets one.
fn render_runtimes(rows: &[Row]) -> String {
    let mut table = Table::new(&["NODE", "RUNTIME", "VERSION", "PROGRAM", "LACKS"]);
    let mut any = false;
    for Row { node, .. } in rows {
        for offer in &node.runtimes {
            any = true;
            let lacks: Vec<_> = offer.lacks.keys().map(ToString::to_string).collect();
            table.row([
                node.node.to_string(),
                offer.runtime.to_string(),
                offer.version.clone().unwrap_or_else(|| "-".to_owned()),
                offer.path.clone().unwrap_or_else(|| "-".to_owned()),
                match &offer.unavailable {
                    Some(why) => format!("everything: {why}"),
                    None if lacks.is_empty() => "nothing".to_owned(),
                    None => lacks.join(", "),
                },
            ]);
        }
    }
    if any { table_text(&table) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longshore_types::{
        Ability, ByteCount, Capacity, ImageMount, MilliCpu, RuntimeName, RuntimeOffer,
    };

    use super::*;

    #[test]
    fn what_has_not_left_a_node_that_is_drained_says_why() {
        let summary = |node: &str| {
            serde_json::json!({
                "node": node, "reachable": true, "reported_at": 0, "version": "1",
                "capacity": Capacity::default(), "promised": Capacity::default(),
            })
        };
        let view = serde_json::json!({
            "location": "ams", "reachable": true, "instances": 1, "nodes": [summary("n1"), summary("n2")],
            "staying": [{
                "node": "n2", "instance": "web-00000001", "project": "default", "app": "web",
                "why": "there is no other node", "under_way": false,
            }],
        });
        let rows = Row::of(serde_json::from_value(view).unwrap());
        let text = render(&rows, Timestamp(0));
        assert!(text.ends_with("\nweb-00000001 on n2: there is no other node\n"), "{text}");
        let json = serde_json::to_value(&rows).unwrap();
        assert!(
            json[0].get("staying").is_none() && json[1]["staying"][0]["instance"] == "web-00000001"
        );
    }

    #[test]
    fn the_capability_table_fits_a_terminal() {
        let offer = |runtime, path: Option<&str>, unavailable: Option<&str>, lacks: &[Ability]| {
            let why = |ability: &Ability| (*ability, "a reason".to_owned());
            RuntimeOffer {
                runtime,
                path: path.map(str::to_owned),
                version: path.map(|_| "1.1.5".to_owned()),
                unavailable: unavailable.map(str::to_owned),
                lacks: lacks.iter().map(why).collect::<BTreeMap<_, _>>(),
            }
        };
        let gpu = |promised| NodeGpu {
            model: "h100".parse().unwrap(),
            memory: ByteCount::gib(80),
            promised: ByteCount::gib(promised),
            leaving: ByteCount(0),
        };
        let missing = "not found in /usr/bin:/bin: install it, or set runsc";
        let capacity =
            Capacity { cpu: MilliCpu(1000), memory: ByteCount::gib(1), disk: ByteCount::gib(1) };
        let node = NodeSummary {
            node: "n1".parse().unwrap(),
            reachable: true,
            reported_at: Timestamp(0),
            capacity,
            promised: Capacity::default(),
            leaving: Default::default(),
            yielding: Vec::new(),
            gpus: [0, 20, 0].map(gpu).into(),
            reached: Vec::new(),
            version: "0.1.0".to_owned(),
            runtimes: vec![
                offer(RuntimeName::Runc, Some("/usr/sbin/runc"), None, &[]),
                offer(RuntimeName::Crun, Some("/usr/bin/crun"), None, &[Ability::Gpu]),
                offer(RuntimeName::Runsc, None, Some(missing), &[]),
            ],
            image_mount: Some(ImageMount::ErofsLoop),
            traits: Traits {
                country: "NL".parse().ok(),
                labels: ["disk=nvme".parse().unwrap()].into(),
            },
            lost: false,
            instances: 0,
            cordon: None,
            drained: false,
        };
        let location = "ams".parse().unwrap();
        let text = render(&[Row { location, node: node.clone(), staying: vec![] }], Timestamp(0));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("n1    NL       disk=nvme\n"), "{text}");
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert_eq!(line("n1    runc"), "n1    runc     1.1.5    /usr/sbin/runc  nothing");
        assert_eq!(line("n1    0,2"), "n1    0,2  h100   0 B of 80 GiB");
        assert_eq!(line("n1    1"), "n1    1    h100   20 GiB of 80 GiB");
        assert!(line("n1    crun").ends_with(" gpu"), "{text}");
        assert!(line("n1    runsc").contains("everything: not found in"), "{text}");
        assert!(text.contains("n1    EROFS on loop devices\n"), "{text}");
        let mut json = serde_json::to_value(&node).unwrap();
        assert_eq!(json["runtimes"][1]["lacks"]["gpu"], "a reason");
        assert_eq!(json["image_mount"], "erofs-loop");
        // One that a later release has.
        json["image_mount"] = "tape".into();
        let later: NodeSummary = serde_json::from_value(json).unwrap();
        assert_eq!(later, NodeSummary { image_mount: None, ..node });
        let location = "ams".parse().unwrap();
        let text = render(&[Row { location, node: later, staying: vec![] }], Timestamp(0));
        assert!(!text.contains("MOUNTED"), "{text}");
    }
}
