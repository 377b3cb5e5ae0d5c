//! `longshore promote`

use http::Method;
use longshore_api::v1::DeployResponse;
use longshore_types::AppName;

use super::deploy::{self, WaitOptions};
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;

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
    let path = options.project.path(format_args!("apps/{}/promote", options.app));
    let response: DeployResponse = connection.api.call(Method::POST, &path, None::<&()>).await?;
    deploy::follow(&connection, &options.project, response, &options.wait).await
}
