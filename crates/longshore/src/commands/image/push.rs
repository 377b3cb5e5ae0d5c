//! `longshore image push`

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use longshore_image::client::RegistryClient;
use longshore_image::push::{PushError, PushProgress, PushTarget, Pushed, push};
use longshore_link::chain;
use longshore_types::{ByteCount, ImageReference, Repository};
use serde::Serialize;

use super::{client, failed, registry};
use crate::connection::{Connection, ConnectionOptions, RegistryAddress};
use crate::failure::{Failure, Kind};
use crate::human;
use crate::progress::Progress;

/// Push an image that lies in files: an OCI layout, or what `docker save` wrote
#[derive(Debug, clap::Args)]
pub struct Options {
    /// An OCI layout (a directory or a tar), or an archive of `docker save`
    path: PathBuf,
    /// What it is to be called, repository[:tag]
    image: ImageReference,
    /// Which image of the files, when there are several
    #[arg(long, value_name = "NAME")]
    select: Option<String>,
    /// A repository of the registry that may have some of the layers already
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Option<Repository>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What was pushed.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// The image as it is called.
    pub image: ImageReference,
    /// The digest of its manifest.
    pub digest: String,
    /// How many blobs were sent.
    pub n_sent: usize,
    /// How many blobs were there already.
    pub n_present: usize,
    /// The bytes that were sent.
    pub bytes_sent: u64,
}

impl Report {
    fn new(image: ImageReference, pushed: &Pushed) -> Self {
        Self {
            image,
            digest: pushed.digest.to_string(),
            n_sent: pushed.n_sent,
            n_present: pushed.n_present,
            bytes_sent: pushed.bytes_sent,
        }
    }
}

/// Pushes the image.
pub async fn run(options: Options) -> Result<(), Failure> {
    let (connection, client) = registry(&options.connection, Some(&options.image)).await?;
    let source = Source {
        path: &options.path,
        select: options.select.as_deref(),
        mount_from: options.mount_from,
    };
    let report = send(&client, source, options.image).await?;
    connection.output.data(&report, render)
}

/// What was pushed, in words.
pub fn render(report: &Report) -> String {
    let sent = human::count(report.n_sent, "blob");
    format!(
        "{}: {}\n{sent} sent ({}), {} there already\n",
        report.image,
        report.digest,
        ByteCount(report.bytes_sent),
        report.n_present
    )
}

/// Pushes the layout in `path` to a registry, with the token of a connection.
pub async fn push_layout(
    path: &Path,
    registry: &RegistryAddress,
    connection: &Connection,
    image: &ImageReference,
) -> Result<Report, Failure> {
    let source = Source { path, select: None, mount_from: None };
    send(&client(registry, connection)?, source, image.clone()).await
}

/// What is pushed.
struct Source<'a> {
    path: &'a Path,
    select: Option<&'a str>,
    mount_from: Option<Repository>,
}

async fn send(
    client: &RegistryClient,
    source: Source<'_>,
    image: ImageReference,
) -> Result<Report, Failure> {
    if image.digest.is_some() {
        return Err(Failure::new(
            Kind::Invalid,
            format!("{image}: an image cannot be pushed as a digest"),
        )
        .hint("name a tag; the digest follows from what is pushed"));
    }
    let target = PushTarget {
        repository: image.repository.clone(),
        tag: Some(image.tag.clone().unwrap_or_default()),
        mount_from: source.mount_from,
    };
    let shown = Shown::default();
    let pushed = push(client, source.path, source.select, &target, &|step| shown.take(step)).await;
    match pushed {
        Ok(pushed) => Ok(Report::new(image, &pushed)),
        Err(PushError::Image(error)) => {
            let path = source.path.display();
            Err(Failure::new(Kind::Invalid, format!("{path}: {}", chain(&error))))
        }
        Err(PushError::Blob { source, .. } | PushError::Manifest { source, .. }) => {
            Err(failed(&image, &source))
        }
    }
}

/// Adds up what every blob that is underway tells.
struct Shown {
    progress: Progress,
    blobs: Mutex<HashMap<String, (u64, u64)>>,
}

impl Default for Shown {
    fn default() -> Self {
        Self { progress: Progress::begin(), blobs: Mutex::default() }
    }
}

impl Shown {
    fn take(&self, step: PushProgress) {
        let (digest, sent, size) = match step {
            PushProgress::Sending { digest, sent, size } => (digest, sent, size),
            PushProgress::Present { digest, size } => (digest, size, size),
            PushProgress::Manifest { .. } => return,
        };
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.insert(digest.to_string(), (sent, size));
        let sum = |part: fn(&(u64, u64)) -> u64| ByteCount(blobs.values().map(part).sum());
        self.progress.bytes(sum(|blob| blob.0), sum(|blob| blob.1));
    }
}
