//! What users see, made from what is wanted and what is reported.

use std::collections::{BTreeMap, BTreeSet};

use longshore_api::links::{InstanceStatus, LocationReport, NodeSummary, Shortfall};
use longshore_api::v1::{
    AppExplanation, AppLocationView, AppView, AwayView, CanaryView, InstanceView,
    LocationShortfall, LocationView, ReleaseView, StayingApp, WaitingView,
};
use longshore_planning::global::Waiting;
use longshore_types::{
    AppName, Capacity, HostName, InstancePhase, LocationName, Manifest, ProjectName, Release,
    ReleaseNumber,
};

use crate::catalog::{AppKey, Catalog, Stored};
use crate::records::{AppRecord, RolloutStage};
use crate::reports::{ByLocation, Received};
use crate::scheduler::Obstacles;
use crate::{PublicNames, scheduler};

/// `current` is the number of the release that should run.
pub fn release(release: &Release, current: ReleaseNumber) -> ReleaseView {
    let Release { number, manifest, image_digest, secrets, created_at } = release.clone();
    let current = number == current;
    ReleaseView { number, manifest, image_digest, secrets, created_at, current }
}

/// The host names that lead to an app: the one that every app gets, then its own.
pub fn hosts(manifest: &Manifest, domain: &str) -> Vec<HostName> {
    let name = if manifest.project == ProjectName::default() {
        format!("{}.{domain}", manifest.app)
    } else {
        format!("{}.{}.{domain}", manifest.app, manifest.project)
    };
    let own = name.parse().ok();
    own.into_iter().chain(manifest.hosts.iter().cloned()).collect()
}

pub fn instance(location: &LocationName, status: &InstanceStatus) -> InstanceView {
    InstanceView {
        project: status.project.clone(),
        app: status.app.clone(),
        release: status.release,
        location: location.clone(),
        node: status.node.clone(),
        gpus: status.gpus.clone(),
        observed: status.observed.clone(),
        draining: status.draining,
        is_command: status.is_command,
        created_at: status.created_at,
    }
}

/// What is reported of the instances of a project, with where they are.
pub fn statuses<'a>(
    reports: &'a ByLocation,
    project: &'a ProjectName,
) -> impl Iterator<Item = (&'a LocationName, &'a InstanceStatus)> {
    reports.values().flat_map(move |received| {
        let of_project = received.instances().filter(move |s| s.project == *project);
        of_project.map(|status| (&received.report.location, status))
    })
}

/// Where a browser reaches an app through the ingress.
fn urls(manifest: &Manifest, hosts: &[HostName], ingress: &str) -> Vec<String> {
    if manifest.port.is_none() {
        return Vec::new();
    }
    let port = match ingress.rsplit_once(':') {
        Some((_, "80")) | None => String::new(),
        Some((_, port)) => format!(":{port}"),
    };
    hosts.iter().map(|host| format!("http://{host}{port}")).collect()
}

pub fn app(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
    public: &PublicNames,
) -> Option<AppView> {
    let statuses: Vec<_> = reports
        .iter()
        .flat_map(|(location, received)| received.of_app(key).map(move |one| (location, one)))
        .collect();
    app_of(catalog, reports, (key, &statuses, &unheard(catalog, reports)), public)
}

/// The apps of a project for which `is_shown`.
pub fn apps(
    catalog: &Catalog,
    reports: &ByLocation,
    project: &ProjectName,
    public: &PublicNames,
    is_shown: impl Fn(&AppName) -> bool,
) -> Vec<AppView> {
    // Sorted once: to look through all instances for each app would cost the product of both.
    let mut by_app: BTreeMap<&AppName, Vec<(&LocationName, &InstanceStatus)>> = BTreeMap::new();
    for (location, status) in statuses(reports, project) {
        by_app.entry(&status.app).or_default().push((location, status));
    }
    let unheard = unheard(catalog, reports);
    let keys = catalog.apps.keys().filter(|(owner, name)| owner == project && is_shown(name));
    keys.filter_map(|key| {
        let statuses = by_app.get(&key.1).map(Vec::as_slice).unwrap_or_default();
        app_of(catalog, reports, (key, statuses, &unheard), public)
    })
    .collect()
}

/// The locations that are not heard of; hardly ever any.
fn unheard<'a>(catalog: &'a Catalog, reports: &ByLocation) -> BTreeSet<&'a LocationName> {
    catalog.locations.keys().filter(|location| !reports.is_heard(location)).collect()
}

/// Those of them that have a part of an app, or should.
fn away(
    catalog: &Catalog,
    reports: &ByLocation,
    (key, statuses): (&AppKey, &[(&LocationName, &InstanceStatus)]),
    unheard: &BTreeSet<&LocationName>,
) -> Vec<AwayView> {
    let views = unheard.iter().filter_map(|&location| {
        let allotment = catalog.allotment(location, key);
        let count = allotment.map_or(0, |allotment| allotment.count);
        let left_with = allotment.and_then(|allotment| allotment.left_with);
        let there = statuses.iter().filter(|(of, _)| *of == location);
        let ran = there.map(|(_, status)| status.release).max();
        let heard_at = reports.get(location).map(|received| received.at_wall);
        // One that was never heard of had what it was told, unless that was changed since.
        let told = allotment.filter(|allotment| heard_at.is_none() && allotment.count > 0);
        let told = told.map(|allotment| allotment.release);
        let release = ran.or(left_with.map(|left_with| left_with.release)).or(told);
        let silent_since = heard_at.or(left_with.and_then(|left_with| left_with.since));
        let view = AwayView { location: location.clone(), count, silent_since, release };
        (count > 0 || release.is_some()).then_some(view)
    });
    views.collect()
}

/// An app, given what is reported of its instances, and the locations that are not heard of.
fn app_of(
    catalog: &Catalog,
    reports: &ByLocation,
    (key, all, unheard): (&AppKey, &[(&LocationName, &InstanceStatus)], &BTreeSet<&LocationName>),
    public: &PublicNames,
) -> Option<AppView> {
    let wanted = &catalog.apps.get(key)?.record;
    let current = catalog.current_release(key)?;
    let away = away(catalog, reports, (key, all), unheard);
    let count_away = away.iter().map(|away| away.count).sum::<u32>().min(wanted.count);
    let statuses = || all.iter().filter(|(of, _)| !unheard.contains(of)).map(|(_, status)| *status);
    let is_current =
        |status: &&InstanceStatus| status.release == wanted.release && !status.is_command;
    let ready = count(statuses().filter(is_current).filter(|status| is_ready(status)));
    let live_current = count(statuses().filter(is_current).filter(|status| !status.draining));
    let heard = wanted.count - count_away;
    let outdated = count(statuses()) - live_current.min(wanted.count);
    let canary = canary(wanted, &current.manifest, ready, canaries_at(catalog, key, &away));
    let releasing = wanted.stage == RolloutStage::Command;
    let state = match (wanted.removing, wanted.count, outdated, ready) {
        (true, ..) => "removing",
        _ if releasing && wanted.failed == Some(wanted.release) => "failed",
        _ if releasing => "releasing",
        (false, 0, 0, _) => "stopped",
        _ if canary.is_some() => "canary",
        (false, _, 0, ready) if ready >= heard && heard > 0 => "running",
        _ if wanted.failed == Some(wanted.release) => "failed",
        (false, _, outdated, _) if outdated > 0 => "rolling",
        _ => "waiting",
    };
    let tried = canary.as_ref().filter(|canary| state == "canary" && canary.is_ready());
    let settled = matches!(state, "running" | "stopped") || tried.is_some();
    let note = match settled {
        true => None,
        false => note((catalog, reports), (key, ready), statuses().filter(is_current)),
    };
    let note = given_up(wanted).or(note).or_else(|| tried.map(CanaryView::note));
    let in_waves =
        || (state == "rolling").then(|| in_waves(catalog, key, wanted.release)).flatten();
    let note = note.or_else(in_waves).or_else(|| except(&away, wanted.release));
    let hosts = hosts(&current.manifest, &public.domain);
    Some(AppView {
        project: key.0.clone(),
        app: key.1.clone(),
        release: wanted.release,
        image: current.manifest.image.to_string(),
        count: wanted.count,
        priority: current.manifest.priority,
        ready,
        outdated,
        away,
        urls: urls(&current.manifest, &hosts, &public.ingress),
        hosts,
        state: state.to_owned(),
        canary,
        failed: wanted.failed,
        latency: scheduler::latency(catalog, reports, key),
        note,
        generation: wanted.generation,
    })
}

/// At how many locations a release has arrived that comes to one after the other.
fn in_waves(catalog: &Catalog, key: &AppKey, release: ReleaseNumber) -> Option<String> {
    let locations = catalog.locations.keys();
    let allotments = locations.filter_map(|location| catalog.allotment(location, key));
    let (mut all, mut there) = (0, 0);
    for record in allotments.filter(|record| record.count > 0) {
        all += 1;
        there += u32::from(record.release == release);
    }
    (there < all).then(|| format!("{release} is at {there} of {all} locations"))
}

/// What does not belong to what is said of an app, because nobody knows.
fn except(away: &[AwayView], release: ReleaseNumber) -> Option<String> {
    let list: Vec<_> = away.iter().map(|away| away.text(longshore_link::now())).collect();
    let behind = away.iter().any(|away| away.release.is_some_and(|running| running != release));
    let begins = if behind { "complete except" } else { "not counting" };
    (!away.is_empty()).then(|| format!("{begins} {}", list.join(", ")))
}

/// True of an instance to which requests go.
pub fn is_ready(status: &InstanceStatus) -> bool {
    let healthy = status.observed.phase == InstancePhase::Healthy;
    healthy && !status.draining && !status.awaits_ingress
}

/// How many canaries should run at those locations.
fn canaries_at(catalog: &Catalog, key: &AppKey, away: &[AwayView]) -> u32 {
    let canaries = away.iter().filter_map(|away| catalog.allotment(&away.location, key)?.canary);
    canaries.map(|canary| canary.count).sum()
}

fn canary(wanted: &AppRecord, manifest: &Manifest, ready: u32, n_away: u32) -> Option<CanaryView> {
    let rules = &manifest.rollout;
    let count = rules.canaries(wanted.count).saturating_sub(n_away);
    let view = CanaryView { beside: wanted.main(), count, ready, wait: rules.canary_wait };
    (wanted.stage == RolloutStage::Canary).then_some(view)
}

/// What became of a release that was given up.
fn given_up(wanted: &AppRecord) -> Option<String> {
    let failed = wanted.failed?;
    // One that was given up before reasons were kept.
    let why = wanted.why.clone().unwrap_or_else(|| format!("{failed} was not complete in time"));
    let goes_on = failed == wanted.release && wanted.stage == RolloutStage::Whole;
    (!goes_on).then(|| match wanted.running() {
        Some(running) if running != failed => format!("{why}; {running} runs"),
        _ => why,
    })
}

/// The first thing that is known to stand in the way of an app.
fn note<'a>(
    (catalog, reports): (&Catalog, &ByLocation),
    (key, ready): (&AppKey, u32),
    mut current: impl Iterator<Item = &'a InstanceStatus>,
) -> Option<String> {
    let count = catalog.apps.get(key)?.record.count;
    let Obstacles { waiting, staying } = scheduler::obstacles(catalog, reports, key);
    let waiting = waiting.map(|one| (one.missing, one.decision.summary()));
    let shortfall = || {
        let (_, found) = shortfalls(reports, key).next()?;
        Some((found.missing, found.decision.summary()))
    };
    let waits = waiting.or_else(shortfall);
    let waits = waits.map(|(missing, why)| waits_text((ready, count), missing, &why));
    waits
        .or(staying)
        .or_else(|| {
            current.find_map(|status| {
                let note = status.observed.note.as_ref()?;
                Some(format!("{}: {note}", status.observed.instance))
            })
        })
        .or_else(|| {
            let is_heard = reports.values().any(Received::reachable);
            (!is_heard).then(|| "no location has reported".to_owned())
        })
}

/// How many of an app run, how many wait, and for what.
fn waits_text((ready, count): (u32, u32), missing: u32, why: &str) -> String {
    let waits = if missing == 1 { "waits" } else { "wait" };
    format!("{ready} of {count} run; {missing} {waits}: {why}")
}

/// What locations cannot carry out of an app.
fn shortfalls<'a>(
    reports: &'a ByLocation,
    key: &'a AppKey,
) -> impl Iterator<Item = (&'a LocationName, &'a Shortfall)> {
    reports.iter().flat_map(move |(location, received)| {
        let of_app = received.report.shortfalls.iter();
        let of_app = of_app.filter(move |one| (&one.project, &one.app) == (&key.0, &key.1));
        of_app.map(move |one| (location, one))
    })
}

/// How much of an app runs, and why the rest does not.
pub fn explained(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
    public: &PublicNames,
) -> Option<AppExplanation> {
    let AppView { app, count, priority, ready, note, latency, .. } =
        self::app(catalog, reports, key, public)?;
    let Obstacles { waiting, staying } = scheduler::obstacles(catalog, reports, key);
    let waiting = waiting.map(|Waiting { missing, decision }| WaitingView { missing, decision });
    let shortfalls = shortfalls(reports, key).map(|(location, shortfall)| LocationShortfall {
        location: location.clone(),
        shortfall: shortfall.clone(),
    });
    let shortfalls: Vec<_> = shortfalls.collect();
    let first = shortfalls.first().map(|one| &one.shortfall);
    let summary = match (&waiting, first, note) {
        (Some(WaitingView { missing, decision }), ..)
        | (None, Some(Shortfall { missing, decision, .. }), _) => {
            waits_text((ready, count), *missing, &decision.why)
        }
        (None, None, Some(note)) => format!("{ready} of {count} run; {note}"),
        (None, None, None) => format!("{ready} of {count} run"),
    };
    Some(AppExplanation {
        app,
        count,
        ready,
        summary,
        waiting,
        shortfalls,
        staying,
        latency,
        priority,
    })
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// The nodes of a location with what is wished of them, which it may not have heard of yet.
fn nodes(catalog: &Catalog, report: &LocationReport) -> Vec<NodeSummary> {
    let mut nodes = report.nodes.clone();
    for node in &mut nodes {
        node.cordon = None;
    }
    for (name, cordon) in catalog.node_cordons(&report.location) {
        for node in nodes.iter_mut().filter(|node| node.node == *name) {
            node.cordon = Some(cordon.clone());
        }
    }
    nodes.retain(|node| !node.cordon.as_ref().is_some_and(|cordon| cordon.removed));
    for node in &mut nodes {
        node.drained &= node.cordon.as_ref().is_some_and(|cordon| cordon.drains);
    }
    nodes
}

/// A location as those see it who may look at these projects.
pub fn location(
    catalog: &Catalog,
    reports: &ByLocation,
    received: &Received,
    may_look_at: impl Fn(&ProjectName) -> bool,
) -> LocationView {
    let report: &LocationReport = &received.report;
    let shown = report.shortfalls.iter().filter(|shortfall| may_look_at(&shortfall.project));
    let nodes = nodes(catalog, report);
    let sum = |part: fn(&NodeSummary) -> Capacity| {
        nodes.iter().map(part).fold(Capacity::default(), Capacity::plus)
    };
    let cordon = catalog.cordon(&report.location).cloned();
    let staying = scheduler::staying_at(catalog, reports, &report.location);
    let is_empty = staying.is_empty() && received.n_instances() == 0;
    let staying_apps = staying.into_iter().filter(|((project, _), ..)| may_look_at(project)).map(
        |((project, app), count, (under_way, why))| StayingApp {
            project,
            app,
            count,
            why,
            under_way,
        },
    );
    LocationView {
        location: report.location.clone(),
        coordinates: report.coordinates,
        round_trip_micros: report.round_trip_micros.clone(),
        traits: report.traits.clone(),
        joined_for: catalog.locations.get(&report.location).and_then(|record| record.country),
        reachable: received.reachable(),
        n_nodes: count(nodes.iter()),
        n_reachable: count(nodes.iter().filter(|node| node.reachable)),
        capacity: sum(|node| node.capacity),
        promised: sum(|node| node.promised),
        instances: count(received.instances()),
        ready: count(received.instances().filter(|status| is_ready(status))),
        shortfalls: shown.cloned().collect(),
        drained: is_empty && cordon.as_ref().is_some_and(|cordon| cordon.drains),
        cordon,
        staying: report.staying.iter().filter(|one| may_look_at(&one.project)).cloned().collect(),
        staying_apps: staying_apps.collect(),
        nodes,
    }
}

/// What each location has of an app, or should have.
pub fn app_locations(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
) -> Vec<AppLocationView> {
    let mut by_location = BTreeMap::new();
    let view = |location: &LocationName| AppLocationView {
        location: location.clone(),
        wanted: 0,
        instances: 0,
        ready: 0,
    };
    for (location, Stored { record, .. }) in catalog.held(key) {
        let count = if record.held_back { 0 } else { record.count };
        let canaries = record.canary.map_or(0, |canary| canary.count);
        by_location.entry(location).or_insert_with(|| view(location)).wanted = count + canaries;
    }
    for (location, received) in reports.iter() {
        for status in received.of_app(key) {
            let view = by_location.entry(location).or_insert_with(|| view(location));
            view.instances += 1;
            view.ready += u32::from(is_ready(status));
        }
    }
    let views = by_location.into_values();
    views.filter(|view| (view.wanted, view.instances) != (0, 0)).collect()
}

#[cfg(test)]
mod tests;
