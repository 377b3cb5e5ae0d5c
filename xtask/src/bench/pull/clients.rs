//! `bench pull --clients`: what the clients of people take to push an image with one large layer into our registry,
//! and to pull it back out.
//!
//! Each has a file system of its own, and a registry of its own that has nothing and converts nothing, so that what that
//! takes of the processor is for the client. It has the image when the first time begins, and nothing of it when the second does.
//!
//! skopeo, crane and oras push the bytes that they were given: manifest, config and layer come back with the digests that
//! were packed. docker, podman and buildah keep a layer unpacked and compress it anew for a push, so the layer that
//! they push, and the manifest, are others. The config, which has the DiffIDs, has to be the one that was packed, and what they
//! pull what they pushed.

mod user;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::image::Layout;
use longshore_types::Digest;
use sha2::{Digest as _, Sha256};

use super::disk::FreshDisk;
use super::servers::{Converts, Registry, Served, read_blobs};
use super::{Figures, Options, WAIT, mib, quiet};
use crate::bench::print_machine;
use user::User;

/// Who pushes and pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Docker,
    Podman,
    Buildah,
    Skopeo,
    Crane,
    Oras,
}

impl Client {
    const ALL: [Self; 6] =
        [Self::Docker, Self::Podman, Self::Buildah, Self::Skopeo, Self::Crane, Self::Oras];

    fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
            Self::Skopeo => "skopeo",
            Self::Crane => "crane",
            Self::Oras => "oras",
        }
    }

    /// What its push and its pull are called in the result.
    fn figures(self) -> [&'static str; 2] {
        match self {
            Self::Docker => ["push_s_docker", "pull_s_docker"],
            Self::Podman => ["push_s_podman", "pull_s_podman"],
            Self::Buildah => ["push_s_buildah", "pull_s_buildah"],
            Self::Skopeo => ["push_s_skopeo", "pull_s_skopeo"],
            Self::Crane => ["push_s_crane", "pull_s_crane"],
            Self::Oras => ["push_s_oras", "pull_s_oras"],
        }
    }

    /// Whether it pushes the bytes that it was given.
    fn keeps_bytes(self) -> bool {
        matches!(self, Self::Skopeo | Self::Crane | Self::Oras)
    }

    /// How much room it needs for an image of so many bytes: the others have it unpacked, and beside that what it is
    /// unpacked from.
    fn room(self, bytes: u64) -> u64 {
        let times = if self.keeps_bytes() { 2 } else { 5 };
        bytes * times + (1 << 30)
    }
}

/// The digests of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digests {
    manifest: String,
    config: String,
    layers: Vec<String>,
}

impl Digests {
    /// Of the bytes of its manifest.
    fn of(bytes: &[u8]) -> Result<Self> {
        let document: serde_json::Value = serde_json::from_slice(bytes)?;
        let digest = |described: &serde_json::Value| {
            described["digest"].as_str().map(str::to_owned).context("something without a digest")
        };
        let layers = document["layers"].as_array().context("a manifest without layers")?;
        Ok(Self {
            manifest: Digest::from_sha256(Sha256::digest(bytes).into()).to_string(),
            config: digest(&document["config"])?,
            layers: layers.iter().map(digest).collect::<Result<_>>()?,
        })
    }

    /// That the registry has what was packed, or what can be made of that, and gave back what it has.
    fn compare(&self, client: Client, pushed: &Self, [manifest, config]: [&str; 2]) -> Result<()> {
        if client.keeps_bytes() {
            ensure!(pushed == self, "{pushed:?} was pushed instead of {self:?}");
        }
        ensure!(pushed.config == self.config, "pushed with another config: {}", pushed.config);
        ensure!(manifest == pushed.manifest, "{manifest} came back for {}", pushed.manifest);
        ensure!(config == pushed.config, "the config {config} came back for {}", pushed.config);
        Ok(())
    }
}

/// What a push or a pull took, in seconds.
#[derive(Debug, Clone, Copy)]
struct Taken {
    wall: f64,
    /// Of the processor.
    client: f64,
    registry: f64,
    /// Processors that others used when it began.
    beside: f64,
}

/// Measures and prints all that are wanted, adds to the figures, and gives what failed.
pub fn measure(
    layout: &Layout,
    bytes: u64,
    options: &Options,
    figures: &mut Figures,
) -> Result<Vec<String>> {
    print_machine();
    let size = mib(bytes);
    println!(
        "clients with a registry of ours that has nothing; {:?}, one layer, {size:.0} MiB",
        options.size()
    );
    println!("in s: until the command returns, and CPU of the client and of the registry\n");
    let columns = ["push", "client", "registry", "pull", "client", "registry"];
    print!("{:<18}", "");
    columns.iter().for_each(|column| print!(" {column:>9}"));
    println!();
    let (mut failed, mut beside) = (Vec::new(), Vec::new());
    let wanted = Client::ALL.into_iter().filter(|client| options.is_wanted(client.name()));
    for client in wanted {
        let label = User::label(client)?;
        let taken = match measure_client(client, layout, bytes) {
            Ok(taken) => taken,
            Err(error) => {
                println!("{label:<18} fails");
                failed.push(format!("{label}: {error:#}"));
                continue;
            }
        };
        print!("{label:<18}");
        for Taken { wall, client, registry, .. } in taken {
            print!(" {wall:>9.2} {client:>9.2} {registry:>9.2}");
        }
        println!();
        let names = client.figures().into_iter();
        figures.extend(names.zip(taken.map(|taken| taken.wall)));
        let most = taken.map(|taken| taken.beside).into_iter().fold(0.0, f64::max);
        beside.extend((most > quiet::AT_MOST).then(|| format!("{label} ({most:.1})")));
    }
    println!(
        "\n* compresses the layer anew: its config with the DiffIDs is the one that was packed, and"
    );
    println!(
        "  what it pulled is what it pushed; of the others every digest is the one that was packed"
    );
    if !beside.is_empty() {
        println!("began while others used processors: {}", beside.join(", "));
    }
    Ok(failed)
}

/// The push and the pull of one.
fn measure_client(client: Client, layout: &Layout, bytes: u64) -> Result<[Taken; 2]> {
    eprintln!("{} pushes and pulls", client.name());
    let packed = Digests::of(&user::manifest_in(layout)?)?;
    let disk = FreshDisk::make(client.room(bytes))?;
    let served = Served::empty(Registry::Longshore, Converts::No, bytes * 3 / 2 + (1 << 30))?;
    let user = User::begin(client, &disk.dir, layout, &packed.config, served.origin())?;
    read_blobs(&layout.dir, &|_| true)?;
    let push = taken(&user, &served, &disk, &mut user.push())?;
    let pushed = Digests::of(&user.pushed()?)?;
    user.forget()?;
    served.warm_all()?;
    let pull = taken(&user, &served, &disk, &mut user.pull())?;
    let [manifest, config] = user.pulled()?;
    packed.compare(client, &pushed, [&manifest, &config])?;
    drop(user);
    served.stop()?;
    Ok([push, pull])
}

fn taken(
    user: &User<'_>,
    served: &Served,
    disk: &FreshDisk,
    command: &mut std::process::Command,
) -> Result<Taken> {
    disk.sync()?;
    let beside = quiet::wait(WAIT)?;
    let (client, registry) = (user.group.cpu()?, served.group.cpu()?);
    let took = super::pullers::watch(command)?;
    Ok(Taken {
        wall: took.returned.as_secs_f64(),
        client: (user.group.cpu()? - client).as_secs_f64(),
        registry: (served.group.cpu()? - registry).as_secs_f64(),
        beside,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(config: &str, layer: &str) -> Digests {
        let text = format!(
            r#"{{"config": {{"digest": "{config}"}}, "layers": [{{"digest": "{layer}"}}]}}"#
        );
        Digests::of(text.as_bytes()).unwrap()
    }

    #[test]
    fn only_who_compresses_anew_may_push_another_layer() {
        let (packed, anew) = (manifest("a", "b"), manifest("a", "c"));
        assert_ne!(packed.manifest, anew.manifest);
        let back = |digests: &Digests| [digests.manifest.clone(), digests.config.clone()];
        let check = |client, pushed: &Digests, [manifest, config]: [String; 2]| {
            packed.compare(client, pushed, [&manifest, &config]).is_ok()
        };
        for client in Client::ALL {
            assert!(check(client, &packed, back(&packed)));
            assert_eq!(check(client, &anew, back(&anew)), !client.keeps_bytes());
            let other = manifest("d", "b");
            assert!(!check(client, &other, back(&other)));
            assert!(!check(client, &packed, back(&anew)));
            assert!(!check(client, &packed, [packed.manifest.clone(), "d".to_owned()]));
        }
        assert!(Digests::of(br#"{"config": {"digest": "a"}}"#).is_err());
        assert!(Digests::of(br#"{"config": {}, "layers": []}"#).is_err());
    }

    #[test]
    fn each_client_has_figures_of_its_own() {
        for client in Client::ALL {
            let expected = ["push_s_", "pull_s_"].map(|what| format!("{what}{}", client.name()));
            assert_eq!(client.figures().map(str::to_owned), expected);
        }
    }
}
