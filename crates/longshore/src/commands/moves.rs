//! What moves, or starts elsewhere, as rows of a table.

use longshore_api::v1::{AppMoveView, Move};

use crate::table::Table;

/// Instances of a node: which, where to, and why there or not.
pub fn add_instances(table: &mut Table, moves: &[Move]) {
    for Move { instance, to, why, .. } in moves {
        let to = to.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row([instance.to_string(), to, why.clone()]);
    }
}

/// Apps of a location: which, how many instances, how many where to, how many that find no place, and why. `done` is
/// why of those of which none goes and none lacks a place.
pub fn add_apps(table: &mut Table, apps: &[AppMoveView], done: &str) {
    for AppMoveView { project, app, count, to, staying, why } in apps {
        let to: Vec<_> = to.iter().map(|(location, n)| format!("{n} {location}")).collect();
        let is_done = to.is_empty() && *staying == 0;
        let why = why.as_deref().unwrap_or(if is_done { done } else { "" });
        table.row([
            format!("{project}/{app}"),
            count.to_string(),
            if to.is_empty() { "-".to_owned() } else { to.join(", ") },
            staying.to_string(),
            why.to_owned(),
        ]);
    }
}
