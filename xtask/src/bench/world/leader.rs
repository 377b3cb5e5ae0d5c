//! Three control planes on one etcd with 351 locations: the one that leads is killed, the next one is frozen until
//! another leads and then woken, and nothing moves.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use longshore_e2e::eventually;
use longshore_e2e::process::signal;
use longshore_store::conformance::EtcdServer;
use longshore_store::{EtcdAddress, EtcdStore, Page, Store};
use rustix::process::Signal;
use serde_json::Value;

use super::Figures;
use crate::bench::fleet::{Fleet, sites};
use crate::bench::plane::Plane;

const N_APPS: u32 = 70;
const N_INSTANCES: u32 = 3_500;
/// Longer than it takes until a location that does not report counts as unreachable, and any move would have come.
const WATCHED: Duration = Duration::from_secs(25);

/// Measures, and fails when anything moved.
pub fn run() -> Result<Figures> {
    let dir = tempfile::Builder::new().prefix("lsl-").tempdir()?;
    let etcd = EtcdServer::cluster(dir.path(), 1)?;
    let address = EtcdServer::address(&etcd);
    let store = address.to_string();
    let mut fleet = Fleet::on(&[store.as_str(); 3])?;
    fleet.join(&sites()?)?;
    fleet.wait_until_heard()?;
    fleet.deploy(N_APPS, N_INSTANCES)?;
    let before = settled(&fleet, &address)?;

    let mut killed = fleet.planes.remove(leading(&fleet, &address)?.context("nobody leads")?);
    killed.role.kill()?;
    let began = Instant::now();
    let reattached = |fleet: &Fleet, began: Instant| {
        eventually("another one leads", || leading(fleet, &address))?;
        fleet.wait_until_heard()?;
        Ok::<_, anyhow::Error>(began.elapsed().as_secs_f64())
    };
    let after_kill = reattached(&fleet, began)?;
    thread::sleep(WATCHED);
    let moved = n_differing(&before, &allotments(&fleet, &address)?);
    ensure!(moved == 0, "{moved} allotments changed when the leader was killed");

    // One that was frozen is taken for dead, and writes nothing when it wakes up.
    let frozen = fleet.planes.remove(leading(&fleet, &address)?.context("nobody leads")?);
    signal(frozen.role.pid()?, Signal::STOP)?;
    let after_freeze = reattached(&fleet, Instant::now())?;
    signal(frozen.role.pid()?, Signal::CONT)?;
    thread::sleep(WATCHED);
    let moved = n_differing(&before, &allotments(&fleet, &address)?);
    ensure!(moved == 0, "{moved} allotments changed when a leader was frozen and woken");
    println!(
        "\n{} allotments of {N_APPS} apps: none changed when the leader was killed, and none when the next one \
         was frozen until a third led",
        before.len()
    );
    Ok(Figures::from([
        ("leader_killed_all_reattached_s", after_kill),
        ("leader_frozen_all_reattached_s", after_freeze),
    ]))
}

/// Which of the control planes leads, if one of these does.
fn leading(fleet: &Fleet, address: &EtcdAddress) -> Result<Option<usize>> {
    let record = fleet.runtime.block_on(async {
        let store = EtcdStore::connect(address, None).await?;
        Ok::<_, anyhow::Error>(store.get("/leader").await?)
    })?;
    let Some(record) = record else { return Ok(None) };
    let record: Value = serde_json::from_slice(&record.value)?;
    let leads = |plane: &Plane| record["data"]["api"] == format!("http://{}", plane.api);
    Ok(fleet.planes.iter().position(leads))
}

/// Each allotment with the revision of its last change.
type Allotments = BTreeMap<String, (u64, Vec<u8>)>;

fn allotments(fleet: &Fleet, address: &EtcdAddress) -> Result<Allotments> {
    fleet.runtime.block_on(async {
        let store = EtcdStore::connect(address, None).await?;
        let listing = store.list("/allotments/", Page::default()).await?;
        let each = listing.items.into_iter();
        Ok(each.map(|one| (one.key, (one.mod_revision.0, one.value.to_vec()))).collect())
    })
}

/// The allotments once they do not change any more.
fn settled(fleet: &Fleet, address: &EtcdAddress) -> Result<Allotments> {
    let mut last = Allotments::new();
    eventually("the allotments are settled", || {
        thread::sleep(Duration::from_secs(2));
        let now = allotments(fleet, address)?;
        let is_settled = !now.is_empty() && now == last;
        last = now;
        Ok(is_settled.then_some(()))
    })
    .context("before the leader was killed")?;
    Ok(last)
}

fn n_differing(before: &Allotments, after: &Allotments) -> usize {
    let gone = before.iter().filter(|(key, was)| after.get(*key) != Some(*was)).count();
    gone + after.keys().filter(|key| !before.contains_key(*key)).count()
}
