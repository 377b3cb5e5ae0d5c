//! 351 locations with one control plane: what each costs, and how fast something reaches all or is taken from one.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use longshore_api::v1::{DeployRequest, InstanceView};
use longshore_e2e::eventually;
use serde_json::{Value, json};

use super::{Figures, figure};
use crate::bench::fleet::{Fleet, manifest, sites};

/// What runs there meanwhile: ten instances each.
const N_APPS: u32 = 35;
const N_INSTANCES: u32 = 3_500;
/// How often is looked.
const LOOK: Duration = Duration::from_millis(5);

/// Measures.
pub fn run(quick: bool) -> Result<Figures> {
    let sites = sites()?;
    let n_sites = figure(sites.len().try_into()?)?;
    let mut fleet = Fleet::on(&["embedded"])?;
    let alone = fleet.planes[0].role.rss_mib()?;
    fleet.join(&sites)?;
    fleet.wait_until_heard()?;
    fleet.deploy(N_APPS, N_INSTANCES)?;
    let together = fleet.planes[0].role.rss_mib()?;

    let (before, cpu) = (fleet.traffic(), fleet.planes[0].role.cpu_seconds()?);
    let period = Duration::from_secs(if quick { 5 } else { 30 });
    thread::sleep(period);
    let (after, used) = (fleet.traffic(), fleet.planes[0].role.cpu_seconds()? - cpu);
    let a_second = n_sites * period.as_secs_f64();

    let mut everywhere = manifest("everywhere", sites.len().try_into()?);
    everywhere["placement"] = json!({"min_locations": sites.len()});
    fleet.expect("everywhere");
    let began = Instant::now();
    deploy(&fleet, "everywhere", everywhere)?;
    let reached = until("every location is told", began, || {
        let n_told = fleet.n_told();
        Ok((n_told, n_told == sites.len()))
    })?;

    let (noticed, replaced) = lose_one(&fleet)?;
    Ok(Figures::from([
        ("location_memory_kib", (together - alone) * 1024.0 / n_sites),
        ("location_cpu_ms_per_s", used * 1000.0 / a_second),
        ("location_up_bytes_per_s", figure(after.0 - before.0)? / a_second),
        ("location_down_bytes_per_s", figure(after.1 - before.1)? / a_second),
        ("deploy_reaches_351_ms", reached.as_secs_f64() * 1000.0),
        ("lost_location_noticed_s", noticed.as_secs_f64()),
        ("lost_location_replaced_s", replaced.as_secs_f64()),
    ]))
}

/// Has a location fall silent with the only instance of an app that does not wait for it to come back: how long
/// until the control plane says that it is not heard of, and until another was given the instance.
fn lose_one(fleet: &Fleet) -> Result<(Duration, Duration)> {
    let mut lonely = manifest("lonely", 1);
    lonely["replace_lost"] = json!("1s");
    deploy(fleet, "lonely", lonely)?;
    let name = eventually("it runs somewhere", || {
        let all: Vec<InstanceView> = fleet.get("/v1/projects/default/instances?app=lonely")?;
        Ok(all.into_iter().next().map(|instance| instance.location))
    })?;
    fleet.expect("lonely");
    fleet.lose(&name);
    let began = Instant::now();
    let noticed = until("the lost location is noticed", began, || {
        let heard = fleet.heard()?;
        Ok((heard.len(), heard.get(&name) == Some(&false)))
    })?;
    let replaced = until("another has the instance", began, || {
        let n_told = fleet.n_told();
        Ok((n_told, n_told > 0))
    })?;
    Ok((noticed, replaced))
}

fn deploy(fleet: &Fleet, name: &str, manifest: Value) -> Result<()> {
    let (api, path) = (fleet.client(), format!("/v1/projects/default/apps/{name}"));
    let request = DeployRequest { manifest };
    fleet.runtime.block_on(api.send(Method::PUT, &path, Some(&request)))?;
    Ok(())
}

/// How long after `began` something is so; `look` says beside that how many locations it saw.
fn until(
    what: &str,
    began: Instant,
    mut look: impl FnMut() -> Result<(usize, bool)>,
) -> Result<Duration> {
    let patience = Duration::from_secs(120);
    loop {
        let (n_seen, is_so) = look()?;
        if is_so {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < patience, "not within {patience:?}: {what} ({n_seen} seen)");
        thread::sleep(LOOK);
    }
}
