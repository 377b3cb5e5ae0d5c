//! The registries that images are pulled from, each on a file system of its own.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use longshore_e2e::image::{Layout, checked};
use longshore_e2e::{Platform, UpOptions, eventually_within};

use super::disk::FreshDisk;
use super::images::{self, Form};
use super::pullers::Origin;
use super::usage::Group;
use crate::bench::registry::peer::Peer;

/// What our registry leaves free of the disk when it converts, and more, in bytes.
const ENOUGH_FREE: u64 = 12 << 30;
/// It converts with the lowest priority, some 50 MB a second.
const CONVERTED_WITHIN: Duration = Duration::from_secs(20 * 60);

/// Whose registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Registry {
    /// Debian's docker-registry
    DockerRegistry,
    /// Ours
    Longshore,
}

/// Whether a registry of ours converts what it has, while it has nothing else to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Converts {
    /// As it does by itself.
    Yes,
    /// What it takes of the processor is for its clients then.
    No,
}

/// A registry that runs.
pub enum Server {
    Peer(Box<Peer>),
    Ours(Box<Platform>),
}

impl Server {
    /// Starts one with its files in a directory.
    pub fn start(kind: Registry, converts: Converts, dir: &Path) -> Result<Self> {
        Ok(match kind {
            Registry::DockerRegistry => Self::Peer(Box::new(Peer::start(dir)?)),
            Registry::Longshore => {
                let config = format!("convert_images = {}\n", converts == Converts::Yes);
                let parent = Some(dir.to_owned());
                let options = UpOptions { parent, config, ..UpOptions::default() };
                Self::Ours(Box::new(Platform::start_with(&options)?))
            }
        })
    }

    /// How it is called.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Peer(peer) => Origin { authority: peer.place.address.to_string(), token: None },
            Self::Ours(platform) => Origin {
                authority: platform.endpoints().registry.clone(),
                token: Some(platform.token().to_owned()),
            },
        }
    }

    fn pid(&self) -> Result<i32> {
        match self {
            Self::Peer(peer) => Ok(peer.pid()),
            Self::Ours(platform) => Ok(platform.role("registry")?.pid),
        }
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        if let Self::Ours(mut platform) = self {
            platform.down()?;
        }
        Ok(())
    }
}

/// A registry with images.
pub struct Served {
    server: Server,
    /// Of its process alone.
    pub group: Group,
    /// What it took to convert each form, where it does.
    pub conversions: Vec<(Form, Conversion)>,
    disk: FreshDisk,
}

/// What a registry took to convert an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conversion {
    /// From the end of its push.
    pub took: Duration,
    /// Of the processor.
    pub cpu: Duration,
    /// Bytes of its disk, beside what was pushed.
    pub bytes: u64,
}

impl Served {
    /// One with these images as they were pushed; `bytes` are all of them.
    pub fn start(kind: Registry, layouts: &[(Form, Layout)], bytes: u64) -> Result<Self> {
        let served = Self::empty(kind, Converts::No, bytes * 6 / 5 + (1 << 30))?;
        for (form, layout) in layouts {
            served.take(*form, layout)?;
        }
        Ok(served)
    }

    /// One of ours that has converted all their layers.
    pub fn converted(layouts: &[(Form, Layout)], bytes: u64) -> Result<Self> {
        let mut served = Self::empty(Registry::Longshore, Converts::Yes, bytes * 2 + ENOUGH_FREE)?;
        for (form, layout) in layouts {
            served.take(*form, layout)?;
            let conversion = served.conversion(*form, layout)?;
            served.conversions.push((*form, conversion));
        }
        Ok(served)
    }

    /// One with nothing, on a file system of so many bytes.
    pub fn empty(kind: Registry, converts: Converts, room: u64) -> Result<Self> {
        let disk = FreshDisk::make(room)?;
        // Before its process, so that it is empty when it goes.
        let group = Group::new("registry")?;
        let server = Server::start(kind, converts, &disk.dir)?;
        group.take(server.pid()?)?;
        Ok(Self { server, group, conversions: Vec::new(), disk })
    }

    /// Has a form of the image pushed to it.
    fn take(&self, form: Form, layout: &Layout) -> Result<()> {
        let origin = self.origin();
        let target = format!("{}/{}", origin.authority, name(form));
        checked(&mut images::push(layout, &target, origin.credentials().as_deref()))?;
        self.disk.sync()
    }

    /// Waits until what was pushed a moment ago is converted.
    fn conversion(&self, form: Form, layout: &Layout) -> Result<Conversion> {
        let Server::Ours(platform) = &self.server else { bail!("it is ours") };
        let (cpu, used, began) = (self.group.cpu()?, self.disk.used()?, Instant::now());
        let repository = platform.data_dir().join("registry/images/repositories/default/pulled");
        let link = repository.join("_converted").join(layout.digest.trim_start_matches("sha256:"));
        eprintln!("converting {}", form.tag());
        eventually_within(CONVERTED_WITHIN, "the image is converted", || {
            Ok(link.exists().then_some(()))
        })?;
        let (took, cpu) = (began.elapsed(), self.group.cpu()? - cpu);
        self.disk.sync()?;
        Ok(Conversion { took, cpu, bytes: self.disk.used()?.saturating_sub(used) })
    }

    /// Has the page cache have what a pull will be given, as the pulls before it filled the memory with something
    /// else. What was converted is all but what was pushed.
    pub fn warm(&self, layout: &Layout, is_converted: bool) -> Result<()> {
        let pushed = fs::read_dir(layout.dir.join("blobs/sha256"))?;
        let pushed: Vec<_> = pushed.map(|blob| Ok(blob?.file_name())).collect::<Result<_>>()?;
        let is_pushed = |path: &Path| path.iter().any(|name| pushed.iter().any(|one| one == name));
        read_blobs(&self.disk.dir, &|path| is_pushed(path) != is_converted)
    }

    /// The same with all that it has.
    pub fn warm_all(&self) -> Result<()> {
        read_blobs(&self.disk.dir, &|_| true)
    }

    /// How it is called.
    pub fn origin(&self) -> Origin {
        self.server.origin()
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.server.stop()
    }
}

/// Reads the blobs below a directory that are wanted, so that the page cache has them.
pub fn read_blobs(dir: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
            if kind?.is_dir() {
                dirs.push(path);
            } else if path.to_string_lossy().contains("sha256") && is_wanted(&path) {
                std::io::copy(&mut fs::File::open(&path)?, &mut std::io::sink())?;
            }
        }
    }
    Ok(())
}

/// What a form of the image is called.
pub fn name(form: Form) -> String {
    format!("default/pulled:{}", form.tag())
}
