//! `bench registry`: pushes and pulls of many small blobs and of a large one, by one client and by
//! sixteen, with Debian's docker-registry beside ours.
//!
//! Each case is the same requests to both, one registry right after the other in shuffled order, on
//! one file system that is synced between the measurements, so that neither waits for what the other
//! left to be written. Every byte that is pulled is compared.
//!
//! A push is timed twice: until the last blob is acknowledged, and until the manifest is, where ours
//! has everything on the disk. docker-registry syncs the bytes of each blob, and no directory. How long
//! the disk alone takes for the bytes is printed beside.
//!
//! What 16 clients push of the large case is 16 blobs that have its size together; what they pull is
//! the one large blob, each all of it.

pub mod client;
mod content;
pub mod peer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use longshore_e2e::process::memory_field;
use longshore_e2e::{Platform, UpOptions};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::figures::{Samples, Shuffler};
use super::laboratory::{self, Disk};
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};
use client::{Client, Place};
use content::{Content, Noise, text_digest};
use peer::Peer;

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// 2 rounds instead of 3, and a large blob of 256 MiB instead of 2 GiB
    #[arg(long)]
    quick: bool,
    /// Where the order of the rounds begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure the release binary that is there, instead of building it first
    #[arg(long)]
    no_build: bool,
}

const SMALL_BLOBS: usize = 1000;
const SMALL_SIZE: u64 = 4096;
const CLIENTS: [usize; 2] = [1, 16];

/// What is done in one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

/// One case: what, by how many, and the times of ours and of the peer.
struct Case {
    size: Size,
    n_clients: usize,
    push: [Samples; 2],
    image: [Samples; 2],
    pull: [Samples; 2],
}

/// An image: what one client pushes to one repository.
struct Image {
    repository: String,
    config: Content,
    blobs: Vec<Content>,
    manifest: String,
}

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    if !laboratory::is_inside() {
        if !options.no_build {
            run_command(&mut cargo(["build", "--release", "--locked"]))?;
        }
        // Out here, for it may have to download.
        peer::fetch()?;
        return laboratory::enter("LONGSHORE_UNUSED", None);
    }
    // Room for every round's large blobs on both sides.
    let disk = Disk::make(24 << 30)?;
    let figures = measure(&disk.dir, options);
    drop(disk);
    print_result("registry", &figures?);
    Ok(())
}

fn measure(disk: &Path, options: &Options) -> Result<BTreeMap<&'static str, f64>> {
    let platform =
        Platform::start_with(&UpOptions { parent: Some(disk.to_owned()), ..Default::default() })?;
    let address = platform.endpoints().registry.parse().context("the registry's address")?;
    let ours = Place { address, token: Some(platform.token().to_owned()) };
    let mut peer = Peer::start(disk)?;
    let (rounds, large) = if options.quick { (2, 256 << 20) } else { (3, 2 << 30) };
    let mut race = Race {
        places: [ours, peer.place.clone()],
        disk: File::open(disk)?,
        noise: Noise::new(options.seed),
        shuffler: Shuffler::new(options.seed),
        large,
    };
    let mut cases: Vec<Case> = [Size::Small, Size::Large]
        .into_iter()
        .flat_map(|size| CLIENTS.map(|n_clients| Case::new(size, n_clients)))
        .collect();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for case in &mut cases {
            race.run(case, round)?;
        }
        peer.empty()?;
    }
    let limits = physical_limits(disk, large)?;
    let labels = ["longshore".to_owned(), peer.label()];
    print(&cases, &labels, large, limits, options);
    let role = platform.role("registry")?;
    let memory = [memory_field(role.pid, "status", "VmHWM:")?, peer.peak()?];
    println!(
        "\npeak memory in MiB: {} {}, {} {}",
        labels[0],
        memory[0] >> 10,
        labels[1],
        memory[1] >> 10
    );
    drop(peer);
    platform.finish();
    let worst = |of: fn(&Case) -> &[Samples; 2]| {
        cases.iter().map(|case| ratio(of(case))).fold(0.0, f64::max)
    };
    let mib = |kib: u64| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
    Ok(BTreeMap::from([
        ("registry_push_ratio", worst(|case| &case.push)),
        ("registry_push_on_disk_ratio", worst(|case| &case.image)),
        ("registry_pull_ratio", worst(|case| &case.pull)),
        ("registry_peak_mib", mib(memory[0])),
        ("peer_peak_mib", mib(memory[1])),
    ]))
}

fn ratio([ours, theirs]: &[Samples; 2]) -> f64 {
    ours.median() / theirs.median()
}

/// Both registries and what they are given.
struct Race {
    places: [Place; 2],
    disk: File,
    noise: Noise,
    shuffler: Shuffler,
    large: u64,
}

impl Race {
    fn run(&mut self, case: &mut Case, round: u32) -> Result<()> {
        let images = self.images(case, round);
        // Sixteen clients pull the one blob that one client pushed before.
        let shared = (case.size == Size::Large && case.n_clients > 1)
            .then(|| self.image(format!("bench/shared-{round}"), &[self.large]));
        for idx in self.shuffler.order(2) {
            let place = &self.places[idx];
            rustix::fs::syncfs(&self.disk)?;
            let [blobs, all] = timed(&images, |image| push(place, image))?;
            case.push[idx].push(blobs);
            case.image[idx].push(all);
            if let Some(image) = &shared {
                push(place, image)?;
            }
        }
        for idx in self.shuffler.order(2) {
            let place = &self.places[idx];
            rustix::fs::syncfs(&self.disk)?;
            let [time, _] = match &shared {
                Some(image) => timed(&vec![image; case.n_clients], |image| pull(place, image))?,
                None => timed(&images, |image| pull(place, image))?,
            };
            case.pull[idx].push(time);
        }
        if case.size == Size::Large {
            images.iter().chain(&shared).try_for_each(|image| delete(&self.places[0], image))?;
        }
        Ok(())
    }

    fn images(&mut self, case: &Case, round: u32) -> Vec<Image> {
        let n_clients = case.n_clients;
        let parts = |client: usize| match case.size {
            Size::Large => vec![self.large / n_clients as u64],
            Size::Small => {
                let share = |n: usize| SMALL_BLOBS * n / n_clients;
                vec![SMALL_SIZE; share(client + 1) - share(client)]
            }
        };
        let parts: Vec<_> = (0..n_clients).map(parts).collect();
        let name = format!("bench/{:?}-{n_clients}-{round}", case.size).to_lowercase();
        let images = parts.iter().enumerate();
        images.map(|(client, sizes)| self.image(format!("{name}-{client}"), sizes)).collect()
    }

    fn image(&mut self, repository: String, sizes: &[u64]) -> Image {
        let config = self.noise.cut(100);
        let blobs: Vec<_> = sizes.iter().map(|size| self.noise.cut(*size)).collect();
        let describe = |kind: &str, blob: &Content| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": kind, "digest": blob.digest, "size": blob.length})
        };
        let layers: Vec<_> = blobs.iter().map(|blob| describe("layer.v1.tar", blob)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("config.v1+json", &config),
            "layers": layers,
        });
        Image { repository, config, blobs, manifest: manifest.to_string() }
    }
}

impl Case {
    fn new(size: Size, n_clients: usize) -> Self {
        Self {
            size,
            n_clients,
            push: Default::default(),
            image: Default::default(),
            pull: Default::default(),
        }
    }
}

/// The times until all clients have their blobs done, and until they are done, each with one image.
fn timed<T: Sync>(
    images: &[T],
    act: impl Fn(&T) -> Result<Instant> + Sync,
) -> Result<[Duration; 2]> {
    let began = Instant::now();
    let blobs_done = std::thread::scope(|scope| {
        let act = &act;
        let clients: Vec<_> = images.iter().map(|image| scope.spawn(move || act(image))).collect();
        let ends = clients.into_iter().map(|one| one.join().expect("a client does not panic"));
        ends.collect::<Result<Vec<Instant>>>()
    })?;
    let last = blobs_done.into_iter().max().context("there is a client")?;
    Ok([last - began, began.elapsed()])
}

/// Pushes an image, and tells when its last blob was acknowledged.
fn push(place: &Place, image: &Image) -> Result<Instant> {
    let mut client = Client::connect(place)?;
    for blob in image.blobs.iter().chain([&image.config]) {
        client.push_blob(&image.repository, blob)?;
    }
    let blobs_done = Instant::now();
    client.push_manifest(&image.repository, "1", &image.manifest)?;
    Ok(blobs_done)
}

fn pull(place: &Place, image: &Image) -> Result<Instant> {
    let mut client = Client::connect(place)?;
    client.pull_manifest(&image.repository, "1", &image.manifest)?;
    for blob in image.blobs.iter().chain([&image.config]) {
        client.pull_blob(&image.repository, blob)?;
    }
    Ok(Instant::now())
}

fn delete(place: &Place, image: &Image) -> Result<()> {
    let mut client = Client::connect(place)?;
    let repository = &image.repository;
    client.delete(&format!("/v2/{repository}/manifests/{}", text_digest(&image.manifest)))?;
    let mut blobs = image.blobs.iter().chain([&image.config]);
    blobs.try_for_each(|blob| client.delete(&format!("/v2/{repository}/blobs/{}", blob.digest)))
}

/// What the machine takes for the bytes of the large blob without any registry: to write them, to
/// hash them, and to have them on the disk.
fn physical_limits(disk: &Path, length: u64) -> Result<[Duration; 3]> {
    let content = Noise::new(0).cut(length);
    let path = disk.join("limit");
    let mut file = File::create(&path)?;
    rustix::fs::syncfs(&file)?;
    let began = Instant::now();
    content.pieces().try_for_each(|piece| file.write_all(piece))?;
    let written = began.elapsed();
    file.sync_all()?;
    let synced = began.elapsed();
    let began = Instant::now();
    let mut hasher = Sha256::new();
    content.pieces().for_each(|piece| hasher.update(piece));
    std::hint::black_box(hasher.finalize());
    let hashed = began.elapsed();
    fs::remove_file(path)?;
    Ok([written, hashed, synced])
}

fn print(
    cases: &[Case],
    labels: &[String; 2],
    large: u64,
    [written, hashed, synced]: [Duration; 3],
    options: &Options,
) {
    print_machine();
    println!("seed {}", options.seed);
    let [ours, theirs] = labels;
    println!("\n{:<44} {ours:>24} {theirs:>24} {:>6}", "median (min to max) in ms", "ratio");
    for case in cases {
        let what = match case.size {
            Size::Small => format!("{SMALL_BLOBS} blobs of {SMALL_SIZE} bytes"),
            Size::Large => format!("{} MiB", large >> 20),
        };
        let rows =
            [("push", &case.push), ("push, on the disk,", &case.image), ("pull", &case.pull)];
        for (verb, samples) in rows {
            let name = format!("{verb} {what}, {} clients", case.n_clients);
            let [ours, theirs] = samples.each_ref().map(|samples| {
                let [min, median, max] = samples.spread();
                format!("{median:.0} ({min:.0} to {max:.0})")
            });
            println!("{name:<44} {ours:>24} {theirs:>24} {:>6.2}", ratio(samples));
        }
    }
    println!("\n{} MiB on this machine without a registry, in ms", large >> 20);
    println!("  {:<24} {:>8.0}", "write", written.as_secs_f64() * 1000.0);
    println!("  {:<24} {:>8.0}", "write and sync", synced.as_secs_f64() * 1000.0);
    println!("  {:<24} {:>8.0}", "SHA-256", hashed.as_secs_f64() * 1000.0);
}
