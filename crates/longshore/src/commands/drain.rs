//! `longshore drain`

use std::time::{Duration, Instant};

use longshore_api::v1::{AppMoveView, LocationView, Move, Staying, StayingApp};
use longshore_client::{Client, Place};
use longshore_types::{LocationName, NodeName};
use schemars::JsonSchema;
use serde::Serialize;

use super::moves;
use super::place::{PlaceOptions, shown};
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// How often to look.
const PAUSE: Duration = Duration::from_millis(500);
/// How many looks in a row show that nothing is under way before it is taken for so: between two steps
/// there are moments in which nothing is.
const LOOKS: u32 = 6;

/// Move all that a node, or a whole location, has elsewhere
///
/// Says first what will move where, and why what stays does. Each instance ends once another one that takes
/// its place is healthy, and its requests have ended. What finds no other place stays, and moves as soon as
/// there is one; `uncordon` takes the wish back.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    place: PlaceOptions,
    /// Say what would move, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Return as soon as it is recorded
    #[arg(long)]
    no_wait: bool,
    /// Wait until nothing is left, or nothing more can move; it does anyway
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: longshore_types::Duration,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What a drain comes to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Drain {
    location: LocationName,
    /// The whole location when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    /// What would become of each instance of the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    moves: Vec<Move>,
    /// What would become of each app of the location.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    apps: Vec<AppMoveView>,
    /// True when nothing was left any more; false when nobody looked.
    drained: bool,
}

/// Drains.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let (api, output) = (&connection.api, connection.output);
    let place = options.place.find(api).await?;
    let mut drain = preview(api, &place).await?;
    if options.dry_run {
        return output.data(&drain, |drain| render(&place, drain));
    }
    output.say(render(&place, &drain).trim_end());
    api.cordon(&place, true).await?;
    if options.no_wait && !options.wait {
        return output.data(&drain, |_| format!("{}: draining\n", shown(&place)));
    }
    wait(api, &place, options.timeout).await?;
    drain.drained = true;
    output.data(&drain, |_| format!("{}: drained\n", shown(&place)))
}

async fn preview(api: &Client, place: &Place) -> Result<Drain, Failure> {
    Ok(match place.clone() {
        Place::Location(location) => {
            let apps = api.preview_location_drain(&location).await?;
            Drain { location, node: None, moves: Vec::new(), apps, drained: false }
        }
        Place::Node(location, node) => {
            let moves = api.preview_node_drain(&location, &node).await?;
            Drain { location, node: Some(node), moves, apps: Vec::new(), drained: false }
        }
    })
}

/// Waits until nothing is left there; fails when that does not come by itself.
async fn wait(
    api: &Client,
    place: &Place,
    limit: longshore_types::Duration,
) -> Result<(), Failure> {
    let end = Instant::now() + limit.0;
    let mut n_still = 0;
    loop {
        let (location, _) = place.names();
        let left = Left::of(place, &api.location(location).await?);
        if left.nothing {
            return Ok(());
        }
        n_still = if left.under_way { 0 } else { n_still + 1 };
        if n_still == LOOKS {
            let message = format!("{}: not all of it can move now\n{}", shown(place), left.text());
            return Err(Failure::new(Kind::Other, message)
                .hint("what stays moves as soon as there is room; `longshore uncordon` gives up"));
        }
        if Instant::now() >= end {
            let message = format!("{}: not drained after {limit}\n{}", shown(place), left.text());
            return Err(Failure::new(Kind::TimedOut, message)
                .hint("the platform goes on; `longshore locations` shows how far it is"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is left at a place.
struct Left {
    nothing: bool,
    /// Whether something of it leaves, or is about to.
    under_way: bool,
    lines: Vec<String>,
}

impl Left {
    fn of(place: &Place, view: &LocationView) -> Self {
        match place {
            Place::Location(_) => Self {
                nothing: view.drained,
                under_way: view.staying_apps.is_empty()
                    || view.staying_apps.iter().any(|app| app.under_way),
                lines: view.staying_apps.iter().map(app_line).collect(),
            },
            Place::Node(_, name) => {
                let node = view.nodes.iter().find(|node| node.node == *name);
                let here = view.staying.iter().filter(|one| one.node == *name);
                let n_staying = here.clone().count();
                // What neither stays nor is gone is on its way out.
                let n_instances = node.map_or(0, |node| node.instances as usize);
                let is_lost = node.is_some_and(|node| node.lost);
                let lost = format!("  it is lost; `longshore nodes rm {name}` forgets what it had");
                Self {
                    nothing: node.is_none_or(|node| node.drained),
                    under_way: !is_lost
                        && (n_instances > n_staying || here.clone().any(|one| one.under_way)),
                    lines: here.map(instance_line).chain(is_lost.then_some(lost)).collect(),
                }
            }
        }
    }

    fn text(&self) -> String {
        self.lines.join("\n")
    }
}

fn instance_line(one: &Staying) -> String {
    format!("  {}: {}", one.instance, one.why)
}

fn app_line(app: &StayingApp) -> String {
    let count = human::count(app.count as usize, "instance");
    format!("  {}/{}, {count}: {}", app.project, app.app, app.why)
}

fn render(place: &Place, drain: &Drain) -> String {
    let name = shown(place);
    if drain.moves.is_empty() && drain.apps.is_empty() {
        return format!("{name}: nothing is there that would have to move\n");
    }
    let mut table = match place {
        Place::Node(..) => Table::new(&["INSTANCE", "TO", "WHY"]),
        Place::Location(_) => Table::new(&["APP", "INSTANCES", "TO", "STAY", "WHY"]),
    };
    moves::add_instances(&mut table, &drain.moves);
    moves::add_apps(&mut table, &drain.apps, "");
    format!("{name}: what a drain moves\n{}", table_text(&table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_and_what_stays_is_told() {
        let place = Place::Node("ams".parse().unwrap(), "n1".parse().unwrap());
        let one = |id: &str, to: Option<&str>, why: &str| Move {
            instance: id.parse().unwrap(),
            project: Default::default(),
            app: "web".parse().unwrap(),
            to: to.map(|to| to.parse().unwrap()),
            why: why.to_owned(),
        };
        let mut drain = Drain {
            location: "ams".parse().unwrap(),
            node: "n1".parse().ok(),
            moves: vec![
                one("web-00000001", Some("n2"), "best of 2 nodes"),
                one("web-00000002", None, "stays: there is no other node"),
            ],
            apps: vec![],
            drained: false,
        };
        let text = render(&place, &drain);
        assert_eq!(
            text,
            "node n1 of ams: what a drain moves\n\
             INSTANCE      TO  WHY\n\
             web-00000001  n2  best of 2 nodes\n\
             web-00000002  -   stays: there is no other node\n"
        );
        drain.moves.clear();
        assert!(render(&place, &drain).contains("nothing is there"));
        let place = Place::Location("ams".parse().unwrap());
        let to = [("sin".parse().unwrap(), 2)].into();
        let why = Some("no other can be started beside it: max = 2".to_owned());
        let (project, app) = (Default::default(), "web".parse().unwrap());
        drain.apps = vec![AppMoveView { project, app, count: 3, to, staying: 1, why }];
        let text = render(&place, &drain);
        assert!(text.contains("default/web  3          2 sin  1     no other can"), "{text}");
    }
}
