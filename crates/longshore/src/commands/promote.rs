//! `longshore promote`

use longshore_types::AppName;

use super::deploy;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::wait::WaitOptions;

/// Let a release whose canaries run take the place of the one before it
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The app
    app: AppName,
    #[command(flatten)]
    wait: WaitOptions,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Promotes it.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let response = project.promote(&options.app).await?;
    deploy::follow(&connection, &project, response, &options.wait).await
}
