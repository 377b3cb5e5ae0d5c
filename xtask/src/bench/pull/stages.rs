//! `bench pull --stages`: what one core of this machine does of each stage of a pull, and what that comes to for
//! an image of 30 GB on other links and with more cores.

use anyhow::{Context, Result};
use longshore_image::pull::LAYERS_AT_ONCE;
use serde::Deserialize;

use super::disk::FreshDisk;
use super::images::Composed;
use super::{GZIP, Options};
use crate::bench::print_machine;
use crate::command::{output, program, release_binary};

/// Bytes of the image, unpacked.
const IMAGE: f64 = 30e9;
/// Links in Gbit/s, of which TCP and Ethernet leave 94 of a hundred.
const LINKS: [f64; 3] = [10.0, 25.0, 100.0];
const LINK_BYTES: f64 = 1e9 / 8.0 * 0.94;
const CORES: [f64; 3] = [4.0, 16.0, 64.0];
/// Bytes a second that the disk takes: a fast NVMe.
const DISK: f64 = 6e9;

/// What was measured before there was a puller, in GB for each second of one core: the prototype's stages, and what
/// the peers have.
const BEFORE: [(&str, &str); 8] = [
    ("inflate", "0.47 to 0.52 (GNU gzip 0.20, Go 0.20 to 0.24, igzip 0.61)"),
    ("zstd", "1.4"),
    ("frames", "1.4: zstd in frames of 1 MiB 2.0, BLAKE3 4.6"),
    ("sha256", "1.4 to 1.7"),
    ("blake3", "4.6 to 4.7"),
    ("write", "6 to 12 with O_DIRECT, 2 to 6 through the page cache"),
    ("receive", "3.3"),
    ("index", "16"),
];

/// What the binary tells.
#[derive(Deserialize)]
struct Report {
    stages: Vec<Stage>,
    gzip_ratio: f64,
    zstd_ratio: f64,
    frames_ratio: f64,
}

#[derive(Deserialize)]
struct Stage {
    stage: String,
    bytes_per_cpu_second: f64,
}

/// Rates by the names of the stages.
struct Rates(Vec<Stage>);

impl Rates {
    fn of(&self, name: &str) -> Result<f64> {
        let stage = self.0.iter().find(|stage| stage.stage == name);
        Ok(stage.with_context(|| format!("no rate of {name}"))?.bytes_per_cpu_second)
    }

    /// Seconds of one core for so many bytes in a stage.
    fn seconds(&self, name: &str, n_bytes: f64) -> Result<f64> {
        Ok(n_bytes / self.of(name)?)
    }
}

/// Measures and prints; gives the figures.
pub fn measure(
    composed: &Composed,
    options: &Options,
) -> Result<std::collections::BTreeMap<&'static str, f64>> {
    let disk = FreshDisk::make(8 << 30)?;
    let archive = disk.dir.join("layer.tar");
    composed.plain_layer(GZIP, &archive)?;
    let mut command = program(&release_binary().display().to_string(), ["image", "rates"]);
    command.arg(&archive).arg("--scratch").arg(&disk.dir).arg("--json");
    let report: Report = serde_json::from_str(&output(&mut command)?)?;
    print_machine();
    println!("{:?}, one layer, GB of the archive for each second of one core", options.size());
    println!("\n{:<10} {:>8}   before", "stage", "here");
    for Stage { stage, bytes_per_cpu_second } in &report.stages {
        let before = BEFORE.iter().find(|(name, _)| name == stage);
        let before = before.map_or("-", |(_, before)| before);
        println!("{stage:<10} {:>8.2}   {before}", bytes_per_cpu_second / 1e9);
    }
    let Report { gzip_ratio, zstd_ratio, frames_ratio, stages } = report;
    println!("ratio of gzip {gzip_ratio:.2}, of zstd {zstd_ratio:.2}, of frames {frames_ratio:.2}");
    let rates = Rates(stages);
    let forms = [
        Bound::of(&rates, "gzip", "inflate", gzip_ratio)?,
        Bound::of(&rates, "zstd", "zstd", zstd_ratio)?,
        Bound::converted(&rates, frames_ratio)?,
    ];
    print_bounds(&forms);
    let names = [
        ("inflate_gb_per_cpu_s", "inflate"),
        ("zstd_gb_per_cpu_s", "zstd"),
        ("frames_gb_per_cpu_s", "frames"),
        ("sha256_gb_per_cpu_s", "sha256"),
        ("blake3_gb_per_cpu_s", "blake3"),
        ("tar_gb_per_cpu_s", "tar"),
        ("write_gb_per_cpu_s", "write"),
        ("index_gb_per_cpu_s", "index"),
        ("receive_gb_per_cpu_s", "receive"),
    ];
    names.into_iter().map(|(figure, stage)| Ok((figure, rates.of(stage)? / 1e9))).collect()
}

/// What a form of the image takes at the least.
struct Bound {
    form: &'static str,
    /// Bytes that come.
    compressed: f64,
    /// Seconds of one core in all.
    work: f64,
    /// Seconds of the slowest thread of a layer, for the whole image.
    thread: f64,
    thread_name: &'static str,
}

impl Bound {
    fn of(rates: &Rates, form: &'static str, decoder: &'static str, ratio: f64) -> Result<Self> {
        let compressed = IMAGE / ratio;
        let decode = rates.seconds(decoder, IMAGE)?;
        let digest = rates.seconds("sha256", IMAGE)?;
        let work = decode
            + digest
            + rates.seconds("sha256", compressed)?
            + rates.seconds("receive", compressed)?
            + rates.seconds("tar", IMAGE)?
            + rates.seconds("write", IMAGE)?
            + rates.seconds("index", IMAGE)?;
        // Each layer has a thread for its decoder and one for the digest of what comes out.
        let (thread, thread_name) =
            if decode > digest { (decode, decoder) } else { (digest, "DiffID") };
        Ok(Self { form, compressed, work, thread, thread_name })
    }

    /// As our registry converts it: frames are decoded and checked by any thread, and no archive is read.
    fn converted(rates: &Rates, ratio: f64) -> Result<Self> {
        let compressed = IMAGE / ratio;
        let work = rates.seconds("frames", IMAGE)?
            + rates.seconds("receive", compressed)?
            + rates.seconds("write", IMAGE)?
            + rates.seconds("index", IMAGE)?;
        Ok(Self { form: "converted", compressed, work, thread: 0.0, thread_name: "no thread" })
    }

    /// How long it takes at the least, and why, when so many layers go at once.
    fn seconds(&self, link: f64, cores: f64, layers_at_once: f64) -> (f64, &'static str) {
        let bounds = [
            (self.compressed / (link * LINK_BYTES), "link"),
            (self.work / cores, "cores"),
            (self.thread / layers_at_once.min(cores), self.thread_name),
            (IMAGE / DISK, "disk"),
        ];
        bounds.into_iter().max_by(|one, other| one.0.total_cmp(&other.0)).expect("there are four")
    }

    /// The same for people, in brackets with a layer for every core where that makes a difference.
    fn cell(&self, link: f64, cores: f64) -> String {
        let (now, why) = self.seconds(link, cores, LAYERS_AT_ONCE as f64);
        let (most, why_most) = self.seconds(link, cores, cores);
        if (now, why) == (most, why_most) {
            return format!("{now:.1} {why}");
        }
        format!("{now:.1} {why} ({most:.1} {why_most})")
    }
}

fn print_bounds(forms: &[Bound]) {
    println!("\nwhat bounds the pull of an image of 30 GB in equal layers, in s, by these rates:");
    println!("three layers at a time, as it is, and in brackets with a layer for every core");
    println!("(a disk of 6 GB/s; one registry and one node; no TLS)\n");
    print!("{:<10} {:<6}", "form", "Gbit/s");
    CORES.iter().for_each(|cores| print!(" {:>26}", format!("{cores} cores")));
    println!();
    for form in forms {
        for link in LINKS {
            print!("{:<10} {link:<6}", form.form);
            CORES.iter().for_each(|cores| print!(" {:>26}", form.cell(link, *cores)));
            println!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_link_cores_thread_and_disk_is_the_bound() {
        let stage = |(name, rate): (&str, f64)| Stage {
            stage: name.to_owned(),
            bytes_per_cpu_second: rate * 1e9,
        };
        let stages = [
            ("inflate", 0.5),
            ("zstd", 1.5),
            ("frames", 1.5),
            ("sha256", 1.5),
            ("tar", 100.0),
            ("write", 10.0),
            ("index", 20.0),
            ("receive", 3.0),
        ];
        let rates = Rates(stages.map(stage).into());
        let gzip = Bound::of(&rates, "gzip", "inflate", 2.0).unwrap();
        assert_eq!(gzip.seconds(100.0, 64.0, 2.0), (30.0, "inflate"));
        assert_eq!(gzip.seconds(100.0, 64.0, 64.0), (5.0, "disk"));
        assert_eq!(gzip.seconds(10.0, 64.0, 64.0).1, "link");
        assert_eq!(gzip.seconds(100.0, 1.0, 2.0).1, "cores");
        let zstd = Bound::of(&rates, "zstd", "zstd", 2.0).unwrap();
        assert!(zstd.work < gzip.work);
        assert_eq!(gzip.cell(100.0, 64.0), "20.0 inflate (5.0 disk)");
        // 20 s of decoding, 5 of receiving, 3 of writing and 1.5 of the index, and nothing that is done by one thread.
        let converted = Bound::converted(&rates, 2.0).unwrap();
        assert!((converted.work - 29.5).abs() < 1e-9, "{}", converted.work);
        assert_eq!(converted.cell(100.0, 64.0), "5.0 disk");
        assert_eq!(converted.cell(100.0, 4.0), "7.4 cores");
        assert_eq!(converted.cell(10.0, 4.0), "12.8 link");
        assert_eq!(rates.of("lz4").unwrap_err().to_string(), "no rate of lz4");
    }
}
