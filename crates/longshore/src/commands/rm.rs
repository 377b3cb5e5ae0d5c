//! `longshore rm`

use http::Method;
use longshore_types::AppName;
use serde_json::json;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;

/// Remove an app: its instances end, its releases are forgotten, its images stay
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The app
    app: AppName,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Removes the app.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let path = options.project.path(format_args!("apps/{}", options.app));
    let () = connection.api.call(Method::DELETE, &path, None::<&()>).await?;
    connection.output.data(&json!({ "removed": options.app }), |_| {
        format!("{}: removed; its instances are ending\n", options.app)
    })
}
