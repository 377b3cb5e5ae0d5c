//! `longshore rm`

use longshore_types::AppName;

use super::schema::Removed;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::wait::{self, WaitOptions};

/// Remove an app: its instances end, its releases are forgotten, its images stay
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

/// Removes the app.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    project.remove(&options.app).await?;
    let waits = options.wait.waits(false);
    if waits {
        wait::until(&project, &options.app, &options.wait, |view| view.apps.is_empty()).await?;
    }
    let removed = Removed { removed: options.app.to_string() };
    connection.output.data(&removed, |_| match waits {
        true => format!("{}: removed\n", options.app),
        false => format!("{}: removed; its instances are ending\n", options.app),
    })
}
