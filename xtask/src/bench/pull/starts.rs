//! What comes before and after a pull: the push of the image into ours and into docker-registry, and the start of
//! a program from an image that is there.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use longshore_e2e::image::{Layout, checked};
use longshore_e2e::{Platform, UpOptions};
use longshore_image::{ImageStore, Limits};

use super::disk::FreshDisk;
use super::images;
use super::servers::{Converts, Registry, Server};
use crate::bench::figures::{Samples, Shuffler};
use crate::command::program;

const IMAGE: &str = "default/started:1";
const PROGRAM: [&str; 3] = ["python3", "-c", "print(1)"];
/// How often the program is started.
const STARTS: u32 = 5;

/// Times of pushes, into ours and into docker-registry, each into a registry with nothing on a file system of
/// its own.
pub struct Pushes([Samples; 2]);

impl Pushes {
    /// Pushes an image so many times into each, in shuffled order.
    pub fn measure(layout: &Layout, bytes: u64, rounds: u32, seed: u64) -> Result<Self> {
        let kinds = [Registry::Longshore, Registry::DockerRegistry];
        let mut times = [Samples::default(), Samples::default()];
        let mut shuffler = Shuffler::new(seed);
        for _ in 0..rounds {
            for idx in shuffler.order(kinds.len()) {
                let disk = FreshDisk::make(bytes * 3 / 2 + (1 << 30))?;
                let server = Server::start(kinds[idx], Converts::Yes, &disk.dir)?;
                let origin = server.origin();
                let target = format!("{}/{IMAGE}", origin.authority);
                let mut push = images::push(layout, &target, origin.credentials().as_deref());
                let began = Instant::now();
                checked(&mut push)?;
                times[idx].push(began.elapsed());
                server.stop()?;
            }
        }
        Ok(Self(times))
    }

    /// Ours by docker-registry's.
    pub fn ratio(&self) -> f64 {
        self.0[0].median() / self.0[1].median()
    }

    /// For people.
    pub fn print(&self) {
        println!("\npush with skopeo until it returns, in s (min median max)");
        for (label, samples) in ["longshore", "docker-registry"].iter().zip(&self.0) {
            let [min, median, max] = samples.spread().map(|millis| millis / 1000.0);
            println!("  {label:<32} {min:>8.2} {median:>8.2} {max:>8.2}");
        }
    }
}

/// Adds to the figures how much longer the program takes to its first output in an instance, from the call of
/// `longshore run`, than by itself in the same tree. The image is on the node, and was started before.
pub fn measure(
    layout: &Layout,
    bytes: u64,
    figures: &mut BTreeMap<&'static str, f64>,
) -> Result<()> {
    // In the registry, and on the node as it came and unpacked.
    let disk = FreshDisk::make(bytes * 6 + (2 << 30))?;
    let options = UpOptions { parent: Some(disk.dir.clone()), ..UpOptions::default() };
    let mut platform = Platform::start_with(&options)?;
    platform.push(layout, IMAGE)?;
    let start = || {
        let mut command = platform.client(&["run", "--timeout", "10m", IMAGE]);
        command.args(PROGRAM);
        first_output(&mut command)
    };
    start()?;
    let in_instance = (0..STARTS).map(|_| start()).collect::<Result<Vec<_>>>()?;
    platform.down()?;
    let images = platform.data_dir().join("node/images");
    let alone = alone(&images, &layout.digest, &disk.dir)?;
    let (in_instance, alone) = (median(in_instance), median(alone));
    println!("\n{} to its first output, in s, median of {STARTS}", PROGRAM.join(" "));
    println!("  {:<32} {in_instance:>8.3}", "longshore run, image there");
    println!("  {:<32} {alone:>8.3}", "chroot into the same tree");
    figures.insert("prewarmed_start_over_program_s", in_instance - alone);
    drop(platform);
    Ok(())
}

/// The times of the program without any container.
fn alone(images: &Path, digest: &str, disk: &Path) -> Result<Vec<Duration>> {
    let store = ImageStore::open(images, Limits::default())?;
    let image = store.image(&digest.parse()?).context("the image is not on the node")?;
    let target = disk.join("alone");
    image.mount(&disk.join("alone-above"), &target, None)?;
    let start = || first_output(program("chroot", [&target]).args(PROGRAM));
    start()?;
    (0..STARTS).map(|_| start()).collect()
}

/// How long a program takes to say something, which must be `1`.
fn first_output(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().context("cannot run a program")?;
    let mut said = [0];
    let read = child.stdout.as_mut().context("it is piped")?.read(&mut said)?;
    let took = began.elapsed();
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && read == 1 && said == *b"1", "{}: {errors}", output.status);
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
