//! `longshore image rm`

use longshore_types::ImageReference;

use super::{failed, registry};
use crate::commands::schema::Removed;
use crate::connection::ConnectionOptions;
use crate::failure::Failure;

/// Remove an image from the registry
///
/// With a tag, the tag alone; with a digest, the image and every tag of it. Releases that are
/// deployed keep running on the nodes that have the image.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The image, repository[:tag][@digest]
    image: ImageReference,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Removes the image.
pub async fn run(options: Options) -> Result<(), Failure> {
    let image = options.image;
    let (connection, client) = registry(&options.connection, Some(&image)).await?;
    client
        .delete_manifest(&image.repository, &image.wanted())
        .await
        .map_err(|error| failed(&image, &error))?;
    let removed = Removed { removed: image.to_string() };
    connection.output.data(&removed, |_| format!("{image}: removed\n"))
}
