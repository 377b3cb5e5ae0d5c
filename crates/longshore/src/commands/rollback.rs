//! `longshore rollback`

use longshore_types::{AppName, ReleaseNumber};

use super::deploy;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::wait::WaitOptions;

/// Go back to an earlier release of an app
///
/// To its manifest and to the image as it was then; its instances that are left are kept. How many
/// should run does not change.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The app
    app: AppName,
    /// The release to go back to, as `releases` shows it [default: the one before the present one]
    release: Option<ReleaseNumber>,
    #[command(flatten)]
    wait: WaitOptions,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Goes back.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let response = project.rollback(&options.app, options.release).await?;
    deploy::follow(&connection, &project, response, &options.wait).await
}
