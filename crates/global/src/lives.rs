//! The lives of locations. A location that lost its store, or its machine, begins another; what is of an earlier
//! one is refused.
//!
//! The number of its life is raised here, by a transaction, and nowhere else: so of two that take themselves for the
//! same location one is of the earlier life, whatever each was told last and whichever speaks first. With it goes
//! what its store had that its nodes cannot tell: their own keys, which it reports for that, and the secret by which it
//! knows again what it gave them. Rejected: a lease on the name, which a location that is cut off would lose; keys
//! that nodes bring along, by which one that was removed would come back.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use longshore_api::links::LocationReport;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, not_for, now};
use longshore_store::{Compare, Transaction};
use longshore_trust::{BeginRequest, Begun, Fingerprint, Name, Peer};
use longshore_types::{LocationEpoch, LocationName, NodeName};

use crate::Plane;
use crate::api::store_failed;
use crate::events::{Who, with_event};
use crate::records::{Key, LocationRecord, decode, encode};

/// How often a change is tried that others make another of meanwhile.
const TRIES: u32 = 5;

/// What a location that begins goes on with. One with an empty store begins its next life.
pub async fn begin(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Extension(peer): Extension<Peer>,
    Body(BeginRequest { epoch: own }): Body<BeginRequest>,
) -> Result<axum::Json<Begun>, Refusal> {
    let record = change(&plane, &location, &peer, |record| {
        record.epoch = Some(match (own, record.epoch) {
            (None, None) => LocationEpoch::FIRST,
            (None, Some(known)) => known.next(),
            (Some(own), _) => {
                refuse_earlier(&location, own, record)?;
                own
            }
        });
        Ok(())
    })
    .await?;
    let epoch = record.epoch.unwrap_or_default();
    let seal = plane.root.secret_for(&format!("what location {location} gives its nodes"));
    Ok(axum::Json(Begun { epoch, seal, node_keys: record.node_keys }))
}

/// Keeps of a report what its location would have to know again.
///
/// # Errors
///
/// When it is of an earlier life, or of a location that was removed.
pub async fn follow(plane: &Plane, peer: &Peer, report: &LocationReport) -> Result<(), Refusal> {
    let (location, epoch) = (&report.location, report.location_epoch);
    let keys = node_keys(report)?;
    let is_known = |record: &LocationRecord| {
        record.epoch.unwrap_or_default() == epoch
            && keys.as_ref().is_none_or(|keys| *keys == record.node_keys)
    };
    let catalog = plane.catalog();
    let there = catalog.locations.get(location);
    if there.is_some_and(is_known) {
        return Ok(());
    }
    let is_there = there.is_some();
    let taken_over = change(plane, location, peer, |record| {
        refuse_earlier(location, epoch, record)?;
        if record.epoch.unwrap_or_default() != epoch {
            record.epoch = Some(epoch);
        }
        if let Some(keys) = &keys {
            record.node_keys.clone_from(keys);
        }
        Ok(())
    });
    match taken_over.await {
        // What is said of this life holds all the same; a report is not held up for what a next one might need.
        Err(Refusal(problem)) if is_there && problem.code == ProblemCode::Unavailable => {
            tracing::warn!(%location, why = problem.detail, "what it would have to know again is not kept");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

fn node_keys(report: &LocationReport) -> Result<Option<BTreeMap<NodeName, Fingerprint>>, Refusal> {
    let Some(keys) = &report.node_keys else { return Ok(None) };
    let parse = |(node, key): (&NodeName, &String)| {
        let refuse = |why| Problem::new(ProblemCode::InvalidRequest, format!("node_keys: {why}"));
        Ok((node.clone(), key.parse().map_err(refuse)?))
    };
    keys.iter().map(parse).collect::<Result<_, Refusal>>().map(Some)
}

fn refuse_earlier(
    location: &LocationName,
    own: LocationEpoch,
    record: &LocationRecord,
) -> Result<(), Refusal> {
    match record.epoch {
        Some(known) if own < known => {
            let detail = format!(
                "this store is of life {own} of location {location}, which is in life {known}: it was \
                 recovered since; remove store.redb in the directory of the location's role, and it \
                 recovers from what its nodes have"
            );
            Err(Problem::new(ProblemCode::Recovered, detail).into())
        }
        _ => Ok(()),
    }
}

/// Why a peer is not the location that it says it is, when it was that before another machine recovered it.
pub fn recovered_elsewhere(plane: &Plane, peer: &Peer, location: &LocationName) -> Option<Refusal> {
    let Peer::Known { name: Name::Location(named), authority: Some(key), .. } = peer else {
        return None;
    };
    let catalog = plane.catalog();
    let record = catalog.locations.get(location).filter(|_| named == location)?;
    let is_before = record.authorities_before.contains(key);
    is_before.then(|| {
        let detail = format!(
            "location {location} was recovered by another machine; remove the directories location and \
             ingress of this one's data directory, and let it join as a node"
        );
        Problem::new(ProblemCode::Recovered, detail).into()
    })
}

/// Changes the record of a location, which is made for one of this machine that has none yet.
async fn change(
    plane: &Plane,
    location: &LocationName,
    peer: &Peer,
    make: impl Fn(&mut LocationRecord) -> Result<(), Refusal>,
) -> Result<LocationRecord, Refusal> {
    let key = Key::Location(location.clone()).to_string();
    for _ in 0..TRIES {
        let stored = plane.store.get(&key).await.map_err(store_failed)?;
        let (mut record, same) = match &stored {
            Some(stored) => (read(stored)?, Compare::unchanged(stored)),
            // One that joined is made by that, and was removed a moment ago.
            None if *peer != Peer::Local => return Err(not_for(peer)),
            None => (LocationRecord::joined(now(), None), Compare::absent(&key)),
        };
        let before = record.clone();
        make(&mut record)?;
        if record == before && stored.is_some() {
            return Ok(record);
        }
        let write = Transaction::new().when(same).put(&key, encode(&record));
        let write = match before.epoch.is_some() && before.epoch < record.epoch {
            true => with_event(write, &Who::PLATFORM, None, "location recover", location),
            false => write,
        };
        let result = plane.store.commit(write).await.map_err(store_failed)?;
        if result.succeeded {
            tracing::info!(%location, epoch = ?record.epoch, "what is known of a location changed");
            return Ok(record);
        }
    }
    let detail = format!("others change what is known of location {location}; try again");
    Err(Problem::new(ProblemCode::Unavailable, detail).into())
}

/// What is stored of a location.
pub fn read(stored: &longshore_store::KeyValue) -> Result<LocationRecord, Refusal> {
    decode(stored).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read a location");
        Problem::new(ProblemCode::Internal, "what is known of the location cannot be read").into()
    })
}
