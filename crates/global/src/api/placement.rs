//! What a manifest says of locations, held against those that there are.

use longshore_api::Problem;
use longshore_link::Refusal;
use longshore_types::{LocationName, ManifestProblem, Near, PlaceMatch, Placement, nearest};

use crate::Plane;

/// Refuses a name that no location has: a slip of the finger would leave everything waiting, or let in what
/// should stay away.
pub fn refuse_unknown(plane: &Plane, placement: &Placement) -> Result<(), Refusal> {
    let (catalog, reports) = (plane.catalog(), plane.reports.now());
    let mut known: Vec<&str> =
        catalog.locations.keys().chain(reports.keys()).map(LocationName::as_str).collect();
    known.sort_unstable();
    known.dedup();
    let mut problems = Vec::new();
    for (field, places) in [("allow", &placement.allow), ("deny", &placement.deny)] {
        for place in places {
            if let PlaceMatch::Location(name) = place {
                problems.extend(unknown(field, name, &known));
            }
        }
    }
    if let Some(Near::Location(name)) = &placement.near {
        let problem = unknown("near", name, &known);
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
    let (catalog, reports) = (plane.catalog(), plane.reports.now());
    let known: Vec<&str> =
        catalog.locations.keys().chain(reports.keys()).map(LocationName::as_str).collect();
    let problems = places.iter().filter_map(|place| match place {
        PlaceMatch::Location(name) => {
            let problem = unknown("", name, &known)?;
            Some(ManifestProblem { field: field.to_owned(), ..problem })
        }
        PlaceMatch::Label(_) => None,
    });
    let problems: Vec<_> = problems.collect();
    if problems.is_empty() { Ok(()) } else { Err(Problem::invalid(problems).into()) }
}

fn unknown(field: &str, name: &LocationName, known: &[&str]) -> Option<ManifestProblem> {
    if known.contains(&name.as_str()) {
        return None;
    }
    let allowed = match nearest(known.iter().copied(), name.as_str()) {
        Some(meant) => format!("the name of a location; did you mean {meant:?}?"),
        None if known.is_empty() => "the name of a location, and none has joined yet".to_owned(),
        None => format!("the name of a location: {}", known.join(", ")),
    };
    let (field, value) = (format!("placement.{field}"), format!("{:?}", name.as_str()));
    Some(ManifestProblem { field, value, allowed })
}
