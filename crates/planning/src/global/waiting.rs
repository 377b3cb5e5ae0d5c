//! Why instances wait, in one phrase.

use std::collections::BTreeMap;

use longshore_types::{Candidate, Lack};

use super::WantedApp;
use super::constraints::listed;

/// What no location has that an app needs, by what each lacks.
pub(super) fn summary(app: &WantedApp, candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        return "no location has reported".to_owned();
    }
    let mut lacks: BTreeMap<Lack, usize> = BTreeMap::new();
    for lack in candidates.iter().filter_map(|candidate| candidate.lack) {
        *lacks.entry(lack).or_default() += 1;
    }
    let placement = &app.placement;
    // What would do but for its room is nearest to what is wanted, and tells the most.
    if let Some(lack) = lacks.keys().copied().find(|lack| lack.is_room()) {
        let where_it_may_be = match (placement.jurisdiction.is_empty(), placement.is_none()) {
            (false, _) => format!("location in {}", listed(&placement.jurisdiction)),
            (true, false) => "location that placement allows".to_owned(),
            (true, true) => "location".to_owned(),
        };
        return format!("no {where_it_may_be} has {} free", amount(app, lack));
    }
    if lacks.len() == 1 {
        match lacks.keys().next() {
            Some(Lack::Cordon) => return "every location is cordoned by an operator".to_owned(),
            Some(Lack::Report) => return "no location has reported lately".to_owned(),
            Some(Lack::Jurisdiction) => {
                return format!("no location is in {}", listed(&placement.jurisdiction));
            }
            Some(Lack::Allow) => return format!("no location is {}", listed(&placement.allow)),
            Some(Lack::Deny) => return "placement.deny has every location".to_owned(),
            Some(Lack::Label) => {
                return format!("no location has nodes with {}", listed(&placement.labels));
            }
            Some(Lack::Reach) => {
                return format!("no location reaches all of {}", listed(&placement.reach));
            }
            Some(Lack::Spread) => {
                return "no location may have one more of this app".to_owned();
            }
            _ => {}
        }
    }
    let each = lacks.iter().map(|(lack, n)| format!("{n} by {}", name(*lack)));
    format!(
        "all {} locations are refused: {}",
        candidates.len(),
        each.collect::<Vec<_>>().join(", ")
    )
}

fn amount(app: &WantedApp, lack: Lack) -> String {
    match lack {
        Lack::Cpu => format!("{} of cpu", app.each.cpu),
        Lack::Disk => format!("{} of disk", app.each.disk),
        Lack::Gpu => app.gpus.as_ref().map_or("a GPU".to_owned(), ToString::to_string),
        _ => format!("{} of memory", app.each.memory),
    }
}

/// By what a location is refused.
fn name(lack: Lack) -> &'static str {
    match lack {
        Lack::Cordon => "an operator's cordon",
        Lack::Report => "silence",
        Lack::Deny => "placement.deny",
        Lack::Allow => "placement.allow",
        Lack::Jurisdiction => "placement.jurisdiction",
        Lack::Label => "placement.labels",
        Lack::Reach => "placement.reach",
        Lack::Spread => "how the app is spread",
        Lack::Runtime => "its runtimes",
        Lack::Cpu | Lack::Memory | Lack::Disk | Lack::Gpu | Lack::Unknown => "its room",
    }
}
