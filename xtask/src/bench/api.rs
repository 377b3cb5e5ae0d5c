//! `bench api`: the API of a platform of 351 locations and 10,000 instances.
//!
//! Listing all instances is measured beside a server that sends the same bytes and thinks nothing, which is
//! the limit of the machine; the peer of a watch is nobody, so its time and memory stand by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use longshore_api::v1::{AppView, ScaleRequest};
use longshore_e2e::process::memory_field;
use longshore_link::{Client, Endpoint, Listener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::figures::percentile;
use super::fleet::{Fleet, sites};
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// Fewer requests and changes
    #[arg(long)]
    quick: bool,
}

const N_APPS: u32 = 50;
const N_INSTANCES: u32 = 10_000;
const N_WATCHERS: usize = 200;
const INSTANCES: &str = "/v1/projects/default/instances";

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    run_command(&mut cargo(["build", "--release", "--locked"]))?;
    let (n_lists, n_changes) = if options.quick { (50, 10) } else { (300, 60) };
    let fleet = Fleet::start(&sites()?)?;
    let began = Instant::now();
    fleet.deploy(N_APPS, N_INSTANCES)?;
    eprintln!("{N_INSTANCES} instances of {N_APPS} apps in {:.1} s", began.elapsed().as_secs_f64());
    let idle = rss_mib(&fleet)?;
    let figures = fleet.runtime.block_on(async {
        let api = fleet.client();
        let whole = body(&api, INSTANCES).await?;
        let listing = times(&api, INSTANCES, n_lists).await?;
        let page = times(&api, &format!("{INSTANCES}?limit=100"), n_lists).await?;
        let copying = copies(whole.clone(), n_lists).await?;
        let after_lists = peak_mib(&fleet)?;
        let fan_out = fan_out(&fleet, n_changes).await?;
        let kib = f64::from(u32::try_from(whole.len() / 1024)?);
        Ok::<_, anyhow::Error>(BTreeMap::from([
            ("list_10000_p99_ms", p99(&listing)),
            ("list_10000_p50_ms", p50(&listing)),
            ("list_10000_kib", kib),
            ("list_vs_plain_copy_ratio", p50(&listing) / p50(&copying)),
            ("page_100_p99_ms", p99(&page)),
            ("global_idle_mib", idle),
            ("global_peak_lists_mib", after_lists),
            ("global_peak_mib", peak_mib(&fleet)?),
            ("sse_fanout_200_p50_ms", p50(&fan_out)),
            ("sse_fanout_200_p99_ms", p99(&fan_out)),
        ]))
    })?;
    print_machine();
    println!("\n351 locations, {N_INSTANCES} instances; {n_lists} lists, {n_changes} changes");
    for (name, value) in &figures {
        println!("{name:<28} {value:>10.2}");
    }
    print_result("api", &figures);
    Ok(())
}

fn rss_mib(fleet: &Fleet) -> Result<f64> {
    kib_field(fleet, "VmRSS:")
}

fn peak_mib(fleet: &Fleet) -> Result<f64> {
    kib_field(fleet, "VmHWM:")
}

fn kib_field(fleet: &Fleet, field: &str) -> Result<f64> {
    let kib = memory_field(fleet.pid()?, "status", field)?;
    Ok(f64::from(u32::try_from(kib)?) / 1024.0)
}

async fn body(api: &Client, path: &str) -> Result<Bytes> {
    let answer = api.send(Method::GET, path, None::<&()>).await?;
    Ok(answer.into_body().collect().await?.to_bytes())
}

/// The times of so many calls, one after the other, until the last byte is there. In milliseconds.
async fn times(api: &Client, path: &str, n: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let began = Instant::now();
        body(api, path).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}

/// The same of a server that has the bytes in its hand.
async fn copies(bytes: Bytes, n: usize) -> Result<Vec<f64>> {
    let listener = Listener::bind("copies", &Endpoint::Tcp("127.0.0.1:0".into()))?;
    let client = Client::new(listener.endpoint()?);
    let answer = Router::new().fallback(move || {
        let bytes = bytes.clone();
        async move { bytes }
    });
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(listener.serve(answer, shutdown.clone()));
    let times = times(&client, "/", n).await;
    shutdown.cancel();
    served.await??;
    times
}

/// From the answer to a change until the last of all watchers was told of it, in milliseconds.
async fn fan_out(fleet: &Fleet, n_changes: usize) -> Result<Vec<f64>> {
    let (told, mut heard) = mpsc::channel::<u32>(N_WATCHERS * 4);
    let connected = Arc::new(AtomicUsize::new(0));
    let mut watchers = Vec::new();
    for _ in 0..N_WATCHERS {
        let (api, told, connected) = (fleet.client(), told.clone(), Arc::clone(&connected));
        watchers.push(tokio::spawn(async move {
            let path = "/v1/projects/default/watch";
            let mut events = api.events(path, None).await?;
            while let Some(event) = events.next().await {
                let event = event?;
                if event.name == "state" {
                    connected.fetch_add(1, Ordering::Relaxed);
                }
                // The count is what the changes below change; no need to read the whole event.
                let count = event.data.split("\"count\":").nth(1);
                let count = count.and_then(|rest| rest.split([',', '}']).next()?.parse().ok());
                if let Some(count) = count.filter(|_| event.name == "change") {
                    let _ = told.send(count).await;
                }
            }
            Ok::<_, longshore_link::CallError>(())
        }));
    }
    let patience = Duration::from_secs(120);
    let all = async {
        while connected.load(Ordering::Relaxed) < N_WATCHERS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(patience, all).await.context("not every watcher got the state")?;
    let api = fleet.client();
    let mut times = Vec::new();
    for number in 0..n_changes {
        let count = N_INSTANCES / N_APPS + 1 + u32::try_from(number % 2)?;
        let began = Instant::now();
        let path = "/v1/projects/default/apps/app0/scale";
        api.call::<_, AppView>(Method::POST, path, Some(&ScaleRequest { count })).await?;
        let mut n_told = 0;
        while n_told < N_WATCHERS {
            let seen = tokio::time::timeout(patience, heard.recv()).await;
            if seen.context("a watcher was not told")? == Some(count) {
                n_told += 1;
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        // What else this change brings is told before the next.
        tokio::time::sleep(Duration::from_millis(500)).await;
        while heard.try_recv().is_ok() {}
    }
    ensure!(watchers.iter().all(|watcher| !watcher.is_finished()), "a watcher was dropped");
    watchers.iter().for_each(|watcher| watcher.abort());
    Ok(times)
}

fn p50(times: &[f64]) -> f64 {
    percentile(times, 50)
}

fn p99(times: &[f64]) -> f64 {
    percentile(times, 99)
}
