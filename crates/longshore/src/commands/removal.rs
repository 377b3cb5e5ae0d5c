//! What `longshore locations rm` and `longshore nodes rm` say before they do it.

use longshore_api::ProblemCode;
use longshore_api::v1::{AppMoveView, Move};
use longshore_client::{Client, Place};
use longshore_link::{CallError, chain};
use longshore_types::{LocationName, NodeName};
use schemars::JsonSchema;
use serde::Serialize;

use super::moves;
use super::place::shown;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::table_text;
use crate::table::Table;

/// What a removal comes to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Removal {
    /// Its name, once it is removed; absent when that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<String>,
    location: LocationName,
    /// The whole location when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    /// What becomes of each instance that the node had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    moves: Vec<Move>,
    /// What becomes of each app that the location had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    apps: Vec<AppMoveView>,
}

/// Whether it is only to be said what it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    DryRun,
    Remove,
}

/// Says what a removal comes to, and removes.
pub async fn remove(connection: &Connection, place: &Place, mode: Mode) -> Result<(), Failure> {
    let (api, output) = (&connection.api, connection.output);
    let (mut removal, said) = match preview(api, place).await {
        Ok(removal) => {
            let said = render(place, &removal);
            (removal, said)
        }
        // What is lost is removed also where it cannot be told what that comes to, as a control plane of the release
        // before cannot. Whether it may be, and whether there is such a place, is told below.
        Err(error) if mode == Mode::Remove && !is_for_good(&error) => {
            (Removal::of(place), untold(place, &error))
        }
        Err(error) => return Err(error.into()),
    };
    if mode == Mode::DryRun {
        return output.data(&removal, |_| said);
    }
    output.say(said.trim_end());
    let (name, done) = match place {
        Place::Location(location) => {
            api.remove_location(location).await?;
            (location.to_string(), format!("{location}: removed\n"))
        }
        Place::Node(location, node) => {
            api.remove_node(location, node).await?;
            (node.to_string(), format!("{node}: removed from {location}\n"))
        }
    };
    removal.removed = Some(name);
    output.data(&removal, |_| done)
}

/// Whether a removal would be refused as its preview was.
fn is_for_good(error: &CallError) -> bool {
    use ProblemCode::{Conflict, Forbidden, InvalidRequest, Unauthenticated};
    let CallError::Refused(problem) = error else { return false };
    matches!(problem.code, Conflict | Forbidden | InvalidRequest | Unauthenticated)
}

fn untold(place: &Place, error: &CallError) -> String {
    let name = shown(place);
    match error {
        CallError::Refused(problem) if problem.code == ProblemCode::NotFound => {
            format!("{name}: this control plane does not say what its removal starts elsewhere\n")
        }
        error => {
            let why = chain(error);
            format!("{name}: what its removal starts elsewhere cannot be told: {why}\n")
        }
    }
}

impl Removal {
    /// Of a place that has nothing.
    fn of(place: &Place) -> Self {
        let (location, node) = place.names();
        let (location, node) = (location.clone(), node.cloned());
        Self { removed: None, location, node, moves: Vec::new(), apps: Vec::new() }
    }
}

async fn preview(api: &Client, place: &Place) -> Result<Removal, CallError> {
    let mut removal = Removal::of(place);
    match place {
        Place::Node(location, node) => {
            removal.moves = api.preview_node_removal(location, node).await?;
        }
        Place::Location(location) => {
            removal.apps = api.preview_location_removal(location).await?;
        }
    }
    Ok(removal)
}

fn render(place: &Place, removal: &Removal) -> String {
    let name = shown(place);
    if removal.moves.is_empty() && removal.apps.is_empty() {
        return format!("{name}: nothing is there that would have to start elsewhere\n");
    }
    let mut table = match place {
        Place::Node(..) => Table::new(&["INSTANCE", "STARTS ON", "WHY"]),
        Place::Location(_) => Table::new(&["APP", "INSTANCES", "START AT", "WAIT", "WHY"]),
    };
    moves::add_instances(&mut table, &removal.moves);
    moves::add_apps(&mut table, &removal.apps, "others have its place");
    format!("{name}: what its removal starts elsewhere\n{}", table_text(&table))
}

#[cfg(test)]
mod tests {
    use longshore_api::Problem;

    use super::*;

    fn removal() -> Removal {
        let location = "ams".parse().unwrap();
        Removal { removed: None, location, node: None, moves: vec![], apps: vec![] }
    }

    #[test]
    fn who_cannot_be_asked_keeps_nothing_from_being_removed() {
        let place = Place::Node("ams".parse().unwrap(), "n1".parse().unwrap());
        let refused = |code| CallError::Refused(Problem::new(code, "it is away"));
        for (code, is_told_again, said) in [
            (ProblemCode::Conflict, true, "cannot be told"),
            (ProblemCode::Forbidden, true, "cannot be told"),
            (ProblemCode::Unavailable, false, "cannot be told"),
            (ProblemCode::Internal, false, "cannot be told"),
            (ProblemCode::NotFound, false, "does not say"),
        ] {
            let error = refused(code);
            assert_eq!(is_for_good(&error), is_told_again, "{code:?}");
            assert!(untold(&place, &error).contains(said), "{code:?}");
        }
    }

    #[test]
    fn what_starts_elsewhere_and_what_waits_is_told() {
        let place = Place::Location("ams".parse().unwrap());
        let nothing = "location ams: nothing is there that would have to start elsewhere\n";
        assert_eq!(render(&place, &removal()), nothing);
        let app = |app: &str, to: &[(&str, u32)], staying, why: Option<&str>| AppMoveView {
            project: Default::default(),
            app: app.parse().unwrap(),
            count: 2,
            to: to.iter().map(|(to, n)| (to.parse().unwrap(), *n)).collect(),
            staying,
            why: why.map(str::to_owned),
        };
        let apps = vec![
            app("api", &[], 0, None),
            app("web", &[("sin", 1)], 1, Some("no location has memory free")),
        ];
        let expected = "location ams: what its removal starts elsewhere\n\
                        APP          INSTANCES  START AT  WAIT  WHY\n\
                        default/api  2          -         0     others have its place\n\
                        default/web  2          1 sin     1     no location has memory free\n";
        assert_eq!(render(&place, &Removal { apps, ..removal() }), expected);
        let place = Place::Node("ams".parse().unwrap(), "n1".parse().unwrap());
        let one = Move {
            instance: "web-00000001".parse().unwrap(),
            project: Default::default(),
            app: "web".parse().unwrap(),
            to: "n2".parse().ok(),
            why: "lost with its node; the only node".to_owned(),
        };
        let text = render(&place, &Removal { moves: vec![one], ..removal() });
        assert!(text.contains("web-00000001  n2         lost with its node"), "{text}");
    }
}
