//! `bench pull`: from the call to the image being there, beside docker, podman and containerd of Debian, of an
//! image that is composed here.
//!
//! Every pull has a file system of its own that nobody wrote to, and the same registry, Debian's docker-registry on
//! loopback with its blobs in the page cache; `--from longshore` has all of them pull from ours. What our registry made
//! of the layers that it was pushed is a row of its own, which only ours has: it comes from a registry of ours
//! that has converted them, and has what that took beside it. The order is shuffled in each round. After each pull the tree is
//! compared with what was packed, name by name and byte by byte: a pull that gives anything else counts as failed, and one of
//! ours ends the bench.
//!
//! Two ends are timed: when the command returns, and when everything is on the disk. Ours returns when it
//! is; the peers sync nothing. Ratios are of the first, which is to the peers' advantage.
//!
//! Peers have their best settings: docker and the older containerd find unpigz, the newer one igzip, and podman none, for it is
//! faster by itself. The newest containerd is measured in three ways, of which those that are a fifth slower in a round are left
//! out of the next; what is the best of all decides. A pull waits until others leave the processors alone; one that begins
//! beside them all the same is told.
//!
//! What is not measured, and why: links with a delay, for which the kernel has to have netem, and without a delay a slower
//! link says what `--stages` reckons; another file system than ext4, for what ours writes is two files a layer on any;
//! memory that was given to nobody yet, which costs the first who writes to it: with orders shuffled everybody meets it.
//! TLS, which nobody here has. For the tools of other people's pushes and pulls see `--clients`.

mod clients;
mod disk;
mod images;
mod listing;
mod pullers;
mod quiet;
mod rows;
mod servers;
mod stages;
mod starts;
mod table;
mod usage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use longshore_e2e::image::{Compression, Layout, checked};

use super::figures::Shuffler;
use super::registry::peer;
use super::{laboratory, print_result};
use crate::command::{cargo, program, run as run_command};
use crate::{newer_debian, packages};
use disk::FreshDisk;
use images::{Composed, Form, Size};
use rows::Row;
use servers::{Conversion, Registry, Served};
use starts::Pushes;
use usage::Group;

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// One round of S with one layer, instead of 3 of M with one and with twelve
    #[arg(long)]
    quick: bool,
    /// Which image
    #[arg(long)]
    image: Option<Size>,
    /// How many rounds
    #[arg(long)]
    rounds: Option<u32>,
    /// Only the image with so many layers, 1 or 12
    #[arg(long)]
    layers: Option<usize>,
    /// Only pullers that have one of these in their names, separated by commas, such as longshore,containerd
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Whose registry the images come from
    #[arg(long, value_enum, default_value = "docker-registry")]
    from: Registry,
    /// Only the stages of a pull, each alone, and what that comes to for an image of 30 GB
    #[arg(long)]
    stages: bool,
    /// Only pushes and pulls of M with one layer by other people's clients, which a full run has too
    #[arg(long, conflicts_with_all = ["quick", "stages"])]
    clients: bool,
    /// Where the order of the rounds begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure the release binary that is there, instead of building it first
    #[arg(long)]
    no_build: bool,
}

const GZIP: Form = Form { compression: Compression::Gzip, n_layers: 1 };
const ZSTD: Form = Form { compression: Compression::Zstd, n_layers: 1 };
const FORMS: [Form; 4] = [
    GZIP,
    ZSTD,
    Form { compression: Compression::Gzip, n_layers: 12 },
    Form { compression: Compression::Zstd, n_layers: 12 },
];

/// What is taken of the newest Debian, which has newer peers.
/// Without pigz, by which podman would take a third more of the processor than by itself.
const NEWEST: [&str; 5] = ["containerd", "podman", "isal", "erofs-utils", "ca-certificates"];

/// The programs that only this bench needs.
const PACKAGES: &[(&str, &str)] = &[
    ("pigz", "unpigz, by which docker and containerd decompress where it is there"),
    ("zstd", "layers as buildx makes them"),
];

/// How long a pull waits for others to leave the processors alone.
const WAIT: Duration = Duration::from_secs(20);
const WAIT_QUICK: Duration = Duration::from_secs(2);

impl Options {
    fn size(&self) -> Size {
        // The stages are measured with an archive in memory.
        self.image.unwrap_or(if self.quick || self.stages { Size::S } else { Size::M })
    }

    fn forms(&self) -> Vec<Form> {
        if self.clients {
            return vec![GZIP];
        }
        let is_quick = self.quick || self.stages;
        let layers = self.layers.or(is_quick.then_some(1));
        let is_wanted = |form: &Form| layers.is_none_or(|layers| form.n_layers == layers);
        FORMS.into_iter().filter(is_wanted).collect()
    }

    fn is_wanted(&self, label: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| label.contains(part.as_str()))
    }

    /// Whether the clients are measured too: when everything is.
    fn is_full(&self) -> bool {
        let is_narrowed = self.quick || self.layers.is_some() || !self.only.is_empty();
        self.size() == Size::M && !is_narrowed
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }
}

/// What is measured, by its name in the result.
type Figures = BTreeMap<&'static str, f64>;

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    let size = options.size();
    if !laboratory::is_inside() {
        if !options.no_build {
            run_command(&mut cargo(["build", "--release", "--locked"]))?;
        }
        fetch(options)?;
        size.compose(&options.forms())?;
        return laboratory::enter("LONGSHORE_UNUSED", None);
    }
    checked(&mut program("ip", ["link", "set", "lo", "up"]))?;
    let composed = size.compose(&options.forms())?;
    let mut figures = Figures::new();
    if options.stages {
        print_result("pull_stages", &stages::measure(&composed, options)?);
        return Ok(());
    }
    let failed = if options.clients {
        let layout = composed.layout(GZIP)?;
        let failed = clients::measure(&layout, bytes_of(&layout)?, options, &mut figures)?;
        print_result("pull_clients", &figures);
        failed
    } else {
        let failed = measure(&composed, options, &mut figures)?;
        print_result("pull", &figures);
        failed
    };
    // Told last, for what else was measured is right.
    ensure!(failed.is_empty(), "clients fail with our registry:\n{}", failed.join("\n"));
    Ok(())
}

/// Gets what is measured beside ours, where the network is.
fn fetch(options: &Options) -> Result<()> {
    packages::ensure(PACKAGES)?;
    if options.clients || options.is_full() {
        newer_debian::ensure_fetched()?;
    }
    if options.clients {
        return Ok(());
    }
    peer::fetch()?;
    if !options.quick && !options.stages {
        newer_debian::ensure_root(&NEWEST)?;
    }
    Ok(())
}

/// What all pulls of a run have in common.
struct Race<'a> {
    /// The registry that has everything as it was pushed.
    plain: Served,
    /// The one that converted it, where that is measured.
    converted: Option<Served>,
    composed: &'a Composed,
    expected: String,
    /// Bytes of the file system of a pull.
    room: u64,
    /// How long a pull waits for others.
    wait: Duration,
}

/// Measures and prints; adds to the figures, and gives what clients failed.
fn measure(composed: &Composed, options: &Options, figures: &mut Figures) -> Result<Vec<String>> {
    let forms = options.forms();
    ensure!(!forms.is_empty(), "no form of the image has that many layers: --layers is 1 or 12");
    let layouts = forms.iter().map(|form| Ok((*form, composed.layout(*form)?)));
    let layouts = layouts.collect::<Result<Vec<_>>>()?;
    let stored = layouts.iter().map(|(_, layout)| bytes_of(layout)).collect::<Result<Vec<_>>>()?;
    let mut rows = rows::rows(options)?;
    let largest = stored.iter().max().copied().unwrap_or_default();
    let race = Race {
        plain: Served::start(options.from, &layouts, stored.iter().sum())?,
        converted: rows
            .iter()
            .any(|row| row.is_converted)
            .then(|| {
                let gzip = |(form, _): &&(Form, Layout)| form.compression == Compression::Gzip;
                let layouts: Vec<_> = layouts.iter().filter(gzip).cloned().collect();
                Served::converted(&layouts, stored.iter().sum())
            })
            .transpose()?,
        composed,
        expected: composed.listing()?,
        // For what came and what it unpacks to, as containerd has both, and as much as makes ours keep the
        // beginning of a layer.
        room: largest * 5 + (1 << 30),
        wait: if options.quick { WAIT_QUICK } else { WAIT },
    };
    for row in rows.iter_mut().filter(|row| row.is_converted) {
        row.conversion = race.conversion(row.form);
    }
    let mut shuffler = Shuffler::new(options.seed);
    let rounds = options.rounds();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for idx in shuffler.order(rows.len()) {
            race.run(&mut rows[idx])?;
        }
        if round < rounds {
            rows::leave_out_slower(&mut rows);
        }
    }
    let Race { plain, converted, .. } = race;
    plain.stop()?;
    converted.map(Served::stop).transpose()?;
    figures.extend(table::figures(&rows));
    table::print(&rows, options);
    let (layout, bytes) = (&layouts[0].1, stored[0]);
    let pushes = Pushes::measure(layout, bytes, rounds, options.seed)?;
    pushes.print();
    figures.insert("push_ratio_vs_docker_registry", pushes.ratio());
    starts::measure(layout, bytes, figures)?;
    if !options.is_full() {
        return Ok(Vec::new());
    }
    clients::measure(layout, bytes, options, figures)
}

impl Race<'_> {
    /// Where a row has the image from.
    fn served(&self, row: &Row) -> Result<&Served> {
        if row.is_converted {
            return self.converted.as_ref().context("nothing is converted");
        }
        Ok(&self.plain)
    }

    /// What it took to convert a form.
    fn conversion(&self, form: Form) -> Option<Conversion> {
        let mut conversions = self.converted.iter().flat_map(|served| &served.conversions);
        conversions.find(|(converted, _)| *converted == form).map(|(_, conversion)| *conversion)
    }

    /// Pulls once, unless that is known to be of no use.
    fn run(&self, row: &mut Row) -> Result<()> {
        if row.failed.is_some() || row.is_left_out {
            return Ok(());
        }
        let disk = FreshDisk::make(self.room)?;
        match self.pull(row, &disk) {
            Err(error) if row.puller.is_ours() => Err(error.context(row.label.clone())),
            Err(error) => {
                eprintln!("{} fails with {}: {error:#}", row.label, row.form.tag());
                row.failed = Some(format!("{error:#}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn pull(&self, row: &mut Row, disk: &FreshDisk) -> Result<()> {
        let (image, served) = (servers::name(row.form), self.served(row)?);
        let origin = served.origin();
        served.warm(&self.composed.layout(row.form)?, row.is_converted)?;
        let session = row.puller.begin(&disk.dir, &origin, Group::new("puller")?)?;
        disk.sync()?;
        let in_use = quiet::wait(self.wait)?;
        let (used, cpu) = (disk.used()?, session.group.cpu()?);
        let (registry_cpu, came) = (served.group.cpu()?, quiet::received()?);
        let began = Instant::now();
        let took = session.pull(&origin, &image)?;
        let (cpu, registry_cpu) = (session.group.cpu()? - cpu, served.group.cpu()? - registry_cpu);
        let came = quiet::received()?.saturating_sub(came);
        disk.sync()?;
        let durable = began.elapsed();
        let grown = disk.used()?.saturating_sub(used);
        let digest = self.composed.layout(row.form)?.digest;
        if row.is_converted && !took.said.contains(&format!("{} came converted", row.form.n_layers))
        {
            bail!("not all layers came converted: {}", took.said);
        }
        let tree = session.tree(&origin, &image, &digest)?;
        if let Some(difference) = listing::difference(&self.expected, &listing::of(&tree)?) {
            bail!("another tree than was packed: {difference}");
        }
        eprintln!("{} {}: {:.2} s", row.label, row.form.tag(), took.returned.as_secs_f64());
        row.returned.push(took.returned);
        row.durable.push(durable);
        row.cpu.push(cpu.as_secs_f64());
        row.registry_cpu.push(registry_cpu.as_secs_f64());
        row.beside.extend((in_use > quiet::AT_MOST).then_some(in_use));
        row.came_mib.push(mib(came));
        row.disk_mib.push(mib(grown));
        row.peak_mib.push(mib(took.peak << 10));
        Ok(())
    }
}

/// What a layout takes of the disk, in bytes.
fn bytes_of(layout: &Layout) -> Result<u64> {
    let blobs = std::fs::read_dir(layout.dir.join("blobs/sha256"))?;
    blobs.map(|blob| Ok(blob?.metadata()?.len())).sum()
}

fn mib(n_bytes: u64) -> f64 {
    f64::from(u32::try_from(n_bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
