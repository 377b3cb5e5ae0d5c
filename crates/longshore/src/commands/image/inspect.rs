//! `longshore image inspect`

use longshore_types::ImageReference;
use serde::Serialize;
use serde_json::Value;

use super::{failed, registry};
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind, OrFail};

/// Show the manifest of an image
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The image, repository[:tag][@digest]
    image: ImageReference,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What a registry says of an image.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Inspection {
    image: ImageReference,
    digest: String,
    media_type: String,
    manifest: Value,
}

/// Shows the manifest.
pub async fn run(options: Options) -> Result<(), Failure> {
    let image = options.image;
    let (connection, client) = registry(&options.connection, Some(&image)).await?;
    let found = client
        .manifest(&image.repository_there(), &image.wanted())
        .await
        .map_err(|error| failed(&image, &error))?;
    let manifest = serde_json::from_slice(&found.bytes)
        .or_fail(Kind::Other, format!("the manifest of {image} is not JSON"))?;
    let inspection = Inspection {
        image,
        digest: found.digest.to_string(),
        media_type: found.media_type,
        manifest,
    };
    connection.output.data(&inspection, render)
}

fn render(inspection: &Inspection) -> String {
    let Inspection { image, digest, media_type, manifest } = inspection;
    // Pretty-printing a value of JSON cannot fail.
    format!("{image}\ndigest  {digest}\ntype    {media_type}\n\n{manifest:#}\n")
}
