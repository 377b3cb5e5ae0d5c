//! `longshore image pull`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_image::mount::KernelPath;
use longshore_image::pull::PullProgress;
use longshore_image::store::OpenStoreError;
use longshore_image::{ImageStore, Limits, PullImageError, PullReport, Retry};
use longshore_link::chain;
use longshore_types::{ByteCount, Digest, ImageReference};
use serde::Serialize;

use super::{failed, registry};
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::progress::Progress;

/// Bring an image to the disk of this machine, as a node has it
///
/// For machines that shall have images before they join, such as those made of one disk: a node keeps
/// its images in node/images of its data directory. While a node runs, it alone uses that directory.
/// Ends once the image is checked and on the disk.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The image, repository[:tag][@digest]
    image: ImageReference,
    /// The directory of images, made when it is not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Unpack it file by file, for a machine whose kernel has no EROFS though this one has
    #[arg(long)]
    directories: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What was brought.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Report {
    image: ImageReference,
    /// The digest by which it was pulled.
    digest: String,
    /// Layers of the image.
    layers: usize,
    /// Of these, how many were there already.
    reused_layers: usize,
    /// Of these, how many came as the registry had converted them.
    converted_layers: usize,
    /// Bytes of layers that came from the registry.
    bytes_fetched: u64,
    /// What they unpacked to.
    bytes_unpacked: u64,
    /// From the call to the image being on the disk.
    elapsed_micros: u64,
    /// Why layers came as they were pushed although the registry has them converted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Brings the image.
pub async fn run(options: Options) -> Result<(), Failure> {
    let Options { image, into, directories, connection } = options;
    let store = open(&into, directories)?;
    let (connection, client) = registry(&connection, Some(&image)).await?;
    let found = client.manifest(&image.repository_there(), &image.wanted()).await;
    let digest = found.map_err(|error| failed(&image, &error))?.digest;
    let (shown, progress) = (Progress::begin(), PullProgress::default());
    let tell = |event| {
        progress.note(&event);
        let (done, all) = progress.so_far();
        shown.bytes(done, all);
    };
    let pulled = store
        .pull(Arc::new(client), &image.repository_there(), &digest, &tell)
        .await
        .map_err(|error| refused(&image, &error))?;
    drop(shown);
    connection.output.data(&Report::new(image, digest, &pulled.1), render)
}

fn open(dir: &Path, directories: bool) -> Result<ImageStore, Failure> {
    let shown = dir.display();
    if !rustix::process::geteuid().is_root() {
        let message =
            format!("only root can bring images to {shown}: files belong to who owns them");
        return Err(Failure::new(Kind::Denied, message));
    }
    let kernel = directories.then_some(KernelPath::Directories);
    ImageStore::open_with(dir, Limits::default(), kernel).map_err(|error| match error {
        OpenStoreError::InUse(_) => {
            Failure::new(Kind::Unavailable, format!("--into {shown}: {}", chain(&error))).hint(
                "a node that runs gets its images itself; stop it, or deploy what it shall have",
            )
        }
        error => Failure::new(Kind::Other, format!("--into {shown}: {}", chain(&error))),
    })
}

fn refused(image: &ImageReference, error: &PullImageError) -> Failure {
    let kind = match error {
        error if error.retry() == Retry::Pointless => Kind::Invalid,
        PullImageError::FetchManifest { .. }
        | PullImageError::FetchConfig { .. }
        | PullImageError::FetchLayer { .. } => Kind::Unavailable,
        _ => Kind::Other,
    };
    Failure::new(kind, format!("{image}: {}", chain(error)))
}

impl Report {
    fn new(image: ImageReference, digest: Digest, pulled: &PullReport) -> Self {
        Self {
            image,
            digest: digest.to_string(),
            layers: pulled.layers,
            reused_layers: pulled.reused_layers,
            converted_layers: pulled.converted_layers,
            bytes_fetched: pulled.bytes_fetched.0,
            bytes_unpacked: pulled.bytes_unpacked.0,
            elapsed_micros: u64::try_from(pulled.elapsed.as_micros()).unwrap_or(u64::MAX),
            notes: pulled.why_plain.clone(),
        }
    }
}

fn render(report: &Report) -> String {
    let Report { image, digest, layers, reused_layers, converted_layers, notes, .. } = report;
    let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    format!(
        "{image}: {digest}\n{} ({reused_layers} there already, {converted_layers} came converted), \
         {} fetched, {} unpacked, {}\n{notes}",
        human::count(*layers, "layer"),
        ByteCount(report.bytes_fetched),
        ByteCount(report.bytes_unpacked),
        human::micros(report.elapsed_micros),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_is_told_in_words() {
        let pulled = PullReport {
            layers: 3,
            reused_layers: 1,
            converted_layers: 2,
            bytes_fetched: ByteCount::mib(2),
            bytes_unpacked: ByteCount::mib(5),
            elapsed: std::time::Duration::from_millis(1500),
            ..PullReport::default()
        };
        let digest = Digest::from_sha256([7; 32]);
        let text = render(&Report::new("default/web:1".parse().unwrap(), digest, &pulled));
        let first =
            format!("default/web:1: {digest}\n3 layers (1 there already, 2 came converted), ");
        assert!(text.starts_with(&first), "{text}");
        assert!(text.ends_with("2 MiB fetched, 5 MiB unpacked, 1.50 s\n"), "{text}");
    }
}
