//! What a manifest says of locations, held against those that there are.

use std::collections::BTreeSet;

use longshore_api::Problem;
use longshore_link::Refusal;
use longshore_types::{LocationName, ManifestProblem, Near, PlaceMatch, Placement, nearest};

use crate::Plane;

/// Refuses a name that no location has: a slip of the finger would leave everything waiting, or let in what
/// should stay away.
pub fn refuse_unknown(plane: &Plane, placement: &Placement) -> Result<(), Refusal> {
    let (known, reports) = (known(plane), plane.reports.now());
    let mut problems = unknown_places("placement.allow", &placement.allow, &known);
    problems.extend(unknown_places("placement.deny", &placement.deny, &known));
    if let Some(Near::Location(name)) = &placement.near {
        let problem = unknown("placement.near", name, &known);
        let nowhere = reports.get(name).is_some_and(|it| it.report.coordinates.is_none());
        let nowhere = nowhere.then(|| ManifestProblem {
            field: "placement.near".to_owned(),
            value: format!("{:?}", name.as_str()),
            allowed: "a location that has --coordinates, or coordinates".to_owned(),
        });
        problems.extend(problem.or(nowhere));
    }
    if problems.is_empty() { Ok(()) } else { Err(Problem::invalid(problems).into()) }
}

/// Refuses names of locations that nobody has.
pub fn refuse_unknown_places(
    plane: &Plane,
    field: &str,
    places: &[PlaceMatch],
) -> Result<(), Refusal> {
    let problems = unknown_places(field, places, &known(plane));
    if problems.is_empty() { Ok(()) } else { Err(Problem::invalid(problems).into()) }
}

/// The names of all locations.
fn known(plane: &Plane) -> BTreeSet<LocationName> {
    let (catalog, reports) = (plane.catalog(), plane.reports.now());
    catalog.locations.keys().chain(reports.keys()).cloned().collect()
}

fn unknown_places<'a>(
    field: &str,
    places: impl IntoIterator<Item = &'a PlaceMatch>,
    known: &BTreeSet<LocationName>,
) -> Vec<ManifestProblem> {
    let problems = places.into_iter().filter_map(|place| match place {
        PlaceMatch::Location(name) => unknown(field, name, known),
        PlaceMatch::Label(_) => None,
    });
    problems.collect()
}

fn unknown(
    field: &str,
    name: &LocationName,
    known: &BTreeSet<LocationName>,
) -> Option<ManifestProblem> {
    if known.contains(name) {
        return None;
    }
    let known: Vec<&str> = known.iter().map(LocationName::as_str).collect();
    let allowed = match nearest(known.iter().copied(), name.as_str()) {
        Some(meant) => format!("the name of a location; did you mean {meant:?}?"),
        None if known.is_empty() => "the name of a location, and none has joined yet".to_owned(),
        None => format!("the name of a location: {}", known.join(", ")),
    };
    let (field, value) = (field.to_owned(), format!("{:?}", name.as_str()));
    Some(ManifestProblem { field, value, allowed })
}
