//! `bench pull`: from the call to the image being there, beside docker, podman and containerd of Debian, of an
//! image that is composed here.
//!
//! Every pull has a file system of its own that nobody wrote to, and the same registry, Debian's docker-registry on
//! loopback with its blobs in the page cache; `--from longshore` has all of them pull from ours. What our registry made
//! of the layers that it was pushed is a row of its own, which only ours has: it comes from a registry of ours
//! that has converted them. The order is shuffled in each round. After each pull the tree is compared with what was packed, name by name and byte by byte: a
//! pull that gives anything else counts as failed, and one of ours ends the bench.
//!
//! Two ends are timed: when the command returns, and when everything is on the disk. Ours returns when it
//! is; the peers sync nothing. Ratios are of the first, which is to the peers' advantage.

mod disk;
mod images;
mod listing;
mod pullers;
mod servers;
mod stages;
mod starts;
mod table;
mod usage;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use longshore_e2e::image::{Compression, Layout, checked};

use super::figures::{Samples, Shuffler};
use super::registry::peer;
use super::{laboratory, print_result};
use crate::command::{cargo, program, run as run_command};
use crate::{newer_debian, packages};
use disk::FreshDisk;
use images::{Composed, Form, Size};
use pullers::Puller;
use servers::{Registry, Served};
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
const NEWEST: [&str; 4] = ["containerd", "podman", "isal", "ca-certificates"];

/// The programs that only this bench needs.
const PACKAGES: &[(&str, &str)] = &[("zstd", "layers as buildx makes them")];

impl Options {
    fn size(&self) -> Size {
        // The stages are measured with an archive in memory.
        self.image.unwrap_or(if self.quick || self.stages { Size::S } else { Size::M })
    }

    fn forms(&self) -> Vec<Form> {
        let is_quick = self.quick || self.stages;
        let layers = self.layers.or(is_quick.then_some(1));
        let is_wanted = |form: &Form| layers.is_none_or(|layers| form.n_layers == layers);
        FORMS.into_iter().filter(is_wanted).collect()
    }

    fn is_wanted(&self, label: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| label.contains(part.as_str()))
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }
}

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    let size = options.size();
    if !laboratory::is_inside() {
        if !options.no_build {
            run_command(&mut cargo(["build", "--release", "--locked"]))?;
        }
        // Out here, for these may have to download.
        packages::ensure(PACKAGES)?;
        peer::fetch()?;
        if !options.quick && !options.stages {
            newer_debian::ensure_root(&NEWEST)?;
        }
        size.compose(&options.forms())?;
        return laboratory::enter("LONGSHORE_UNUSED", None);
    }
    checked(&mut program("ip", ["link", "set", "lo", "up"]))?;
    let composed = size.compose(&options.forms())?;
    if options.stages {
        print_result("pull_stages", &stages::measure(&composed, options)?);
        return Ok(());
    }
    print_result("pull", &measure(&composed, options)?);
    Ok(())
}

/// One way to pull one form of the image, and what came of it.
struct Row {
    puller: Puller,
    label: String,
    form: Form,
    /// It comes as our registry converted it.
    is_converted: bool,
    returned: Samples,
    durable: Samples,
    cpu: Vec<f64>,
    registry_cpu: Vec<f64>,
    disk_mib: Vec<f64>,
    peak_mib: Vec<f64>,
    failed: Option<String>,
}

/// The rows: every puller with every form.
fn rows(options: &Options) -> Result<Vec<Row>> {
    let mut pullers = vec![
        Puller::Longshore,
        Puller::LongshoreDirectories,
        Puller::Docker,
        Puller::Podman(None),
        Puller::Containerd(None),
    ];
    if !options.quick {
        let newest = newer_debian::ensure_root(&NEWEST)?;
        pullers.push(Puller::Podman(Some(newest.clone())));
        pullers.push(Puller::Containerd(Some(newest)));
    }
    let forms = options.forms();
    let mut rows = Vec::new();
    for form in forms {
        rows.extend(pullers.iter().map(|puller| Row::new(puller, form, false)));
        // It is the same of whatever a layer was compressed by.
        if form.compression == Compression::Gzip {
            rows.push(Row::new(&Puller::Longshore, form, true));
        }
    }
    rows.retain(|row| options.is_wanted(&row.label));
    ensure!(!rows.is_empty(), "nothing is measured with --only {}", options.only.join(","));
    Ok(rows)
}

impl Row {
    fn new(puller: &Puller, form: Form, is_converted: bool) -> Self {
        let how = if is_converted { ", converted" } else { "" };
        Self {
            label: format!("{}{how}", puller.label()),
            puller: puller.clone(),
            form,
            is_converted,
            returned: Samples::default(),
            durable: Samples::default(),
            cpu: Vec::new(),
            registry_cpu: Vec::new(),
            disk_mib: Vec::new(),
            peak_mib: Vec::new(),
            failed: None,
        }
    }
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
}

fn measure(composed: &Composed, options: &Options) -> Result<BTreeMap<&'static str, f64>> {
    let forms = options.forms();
    ensure!(!forms.is_empty(), "no form of the image has that many layers: --layers is 1 or 12");
    let layouts = forms.iter().map(|form| Ok((*form, composed.layout(*form)?)));
    let layouts = layouts.collect::<Result<Vec<_>>>()?;
    let stored = layouts.iter().map(|(_, layout)| bytes_of(layout)).collect::<Result<Vec<_>>>()?;
    let mut rows = rows(options)?;
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
    };
    let mut shuffler = Shuffler::new(options.seed);
    let rounds = options.rounds();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for idx in shuffler.order(rows.len()) {
            race.run(&mut rows[idx])?;
        }
    }
    let Race { plain, converted, .. } = race;
    plain.stop()?;
    converted.map(Served::stop).transpose()?;
    let mut figures = table::figures(&rows);
    table::print(&rows, options);
    let (layout, bytes) = (&layouts[0].1, stored[0]);
    let pushes = Pushes::measure(layout, bytes, rounds, options.seed)?;
    pushes.print();
    figures.insert("push_ratio_vs_docker_registry", pushes.ratio());
    starts::measure(layout, bytes, &mut figures)?;
    Ok(figures)
}

impl Race<'_> {
    /// Where a row has the image from.
    fn served(&self, row: &Row) -> Result<&Served> {
        if row.is_converted {
            return self.converted.as_ref().context("nothing is converted");
        }
        Ok(&self.plain)
    }

    /// Pulls once, unless it failed before.
    fn run(&self, row: &mut Row) -> Result<()> {
        if row.failed.is_some() {
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
        let (used, cpu) = (disk.used()?, session.group.cpu()?);
        let (registry_cpu, began) = (served.group.cpu()?, Instant::now());
        let took = session.pull(&origin, &image)?;
        let (cpu, registry_cpu) = (session.group.cpu()? - cpu, served.group.cpu()? - registry_cpu);
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
