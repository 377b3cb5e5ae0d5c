//! `bench dashboard`: the dashboard of a platform of 351 locations and 10,000 instances, from the call of its
//! address until the map and the apps are seen, and the bytes that this takes.
//!
//! In a headless Chromium that has never been there, logged in already, over a proxy that counts every byte
//! which the control plane sends: heads, and streams that have not ended, which a browser's own account leaves
//! out. Once over loopback, which is the work of both ends alone, and once as slow as a mobile network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Args;
use longshore_e2e::Browser;
use longshore_e2e::browser::Looks;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};

use super::fleet::{Fleet, sites};
use super::plane::ADMIN_TOKEN;
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};
use crate::packages;

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// One visit instead of five
    #[arg(long)]
    quick: bool,
}

const N_APPS: u32 = 50;
const N_INSTANCES: u32 = 10_000;
/// A mobile network of the fourth generation: milliseconds there and back, bytes a second down and up.
const MOBILE: (u32, u32, u32) = (60, 1_250_000, 375_000);
/// What is called useful: each location has its point, and each app its row with how much of it is ready.
const USEFUL: &str = "document.querySelectorAll('.world g circle').length === 351 && \
                      document.querySelectorAll('#main tbody tr .progress').length === 50";

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    packages::ensure(&[
        ("chromium", "the browser that looks at the dashboard"),
        ("chromium-driver", "drives it"),
    ])?;
    if std::env::var_os("LONGSHORE_BIN").is_none() {
        run_command(&mut cargo(["build", "--release", "--locked"]))?;
    }
    let n_visits = if options.quick { 1 } else { 5 };
    let fleet = Fleet::start(&sites()?)?;
    fleet.deploy(N_APPS, N_INSTANCES)?;
    let proxy = fleet.runtime.block_on(Proxy::start(fleet.planes[0].api))?;
    let mut first = Vec::new();
    let mut mobile = Vec::new();
    for _ in 0..n_visits {
        first.push(visit(&proxy, Speed::Loopback)?);
        mobile.push(visit(&proxy, Speed::Mobile)?);
    }
    print_machine();
    println!("\n351 locations, {N_INSTANCES} instances, {N_APPS} apps; {n_visits} visits each");
    let figures = BTreeMap::from([
        ("dashboard_kib", median(&first, |visit| visit.kib)),
        ("dashboard_again_kib", median(&first, |visit| visit.again_kib)),
        ("first_useful_paint_ms", median(&first, |visit| visit.useful_ms)),
        ("first_useful_paint_mobile_ms", median(&mobile, |visit| visit.useful_ms)),
    ]);
    for (name, value) in &figures {
        println!("{name:<30} {value:>9.1}");
    }
    print_result("dashboard", &figures);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speed {
    Loopback,
    Mobile,
}

/// What one visit came to.
struct Visit {
    /// Until the first useful picture was on the screen.
    useful_ms: f64,
    /// What was sent until everything was there, events too.
    kib: f64,
    /// The same of a second visit, whose files the browser has.
    again_kib: f64,
}

fn visit(proxy: &Proxy, speed: Speed) -> Result<Visit> {
    let browser = Browser::start(Looks::DESKTOP)?;
    let script = format!(
        "sessionStorage.setItem('longshore-token', {});
         const look = () => {{
           if (!({USEFUL})) return requestAnimationFrame(look);
           // A frame is on the screen when the next one begins.
           requestAnimationFrame(() => {{ window.usefulAt = performance.now(); }});
         }};
         addEventListener('DOMContentLoaded', look);",
        json!(ADMIN_TOKEN)
    );
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": script}))?;
    if speed == Speed::Mobile {
        let (latency, down, up) = MOBILE;
        let network = json!({
            "offline": false, "latency": latency, "downloadThroughput": down, "uploadThroughput": up,
        });
        browser.devtools("Network.enable", json!({}))?;
        browser.devtools("Network.emulateNetworkConditions", network)?;
    }
    let load = || -> Result<(f64, f64)> {
        let before = proxy.sent();
        browser.open(&format!("http://{}/ui/", proxy.address))?;
        browser.wait_for("the dashboard is useful", "window.usefulAt")?;
        browser.wait_for("events are shown", "document.querySelector('.events li')")?;
        let useful = browser.run("return window.usefulAt")?.as_f64().context("no time")?;
        Ok((useful, kib(proxy.sent() - before)?))
    };
    let (useful_ms, sent) = load()?;
    let (_, again) = load()?;
    let wrong = browser.console()?;
    ensure!(wrong.is_empty(), "the page complains: {}", wrong.join("; "));
    Ok(Visit { useful_ms, kib: sent, again_kib: again })
}

fn kib(bytes: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(bytes)?) / 1024.0)
}

fn median(visits: &[Visit], part: impl Fn(&Visit) -> f64) -> f64 {
    let mut values: Vec<f64> = visits.iter().map(part).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Counts what a server sends.
struct Proxy {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        // Ends with the runtime of the fleet.
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, Arc::clone(&count)));
            }
        });
        Ok(Self { address, sent })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// One connection, until either side ends it.
async fn pass(client: TcpStream, server: SocketAddr, sent: Arc<AtomicU64>) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    tokio::select! {
        asked = tokio::io::copy(&mut from_client, &mut to_server) => asked.map(drop),
        answered = counted(from_server, to_client, &sent) => answered,
    }
}

async fn counted(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n_bytes = from.read(&mut buffer).await?;
        if n_bytes == 0 {
            return Ok(());
        }
        sent.fetch_add(n_bytes as u64, Ordering::Relaxed);
        to.write_all(&buffer[..n_bytes]).await?;
    }
}
