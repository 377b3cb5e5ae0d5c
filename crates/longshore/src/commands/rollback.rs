//! `longshore rollback`

use http::Method;
use longshore_api::v1::{DeployResponse, RollbackRequest};
use longshore_types::{AppName, ReleaseNumber};

use super::deploy::{self, WaitOptions};
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;

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
    let path = options.project.path(format_args!("apps/{}/rollback", options.app));
    let request = RollbackRequest { release: options.release };
    let response: DeployResponse = connection.api.call(Method::POST, &path, Some(&request)).await?;
    deploy::follow(&connection, &options.project, response, &options.wait).await
}
