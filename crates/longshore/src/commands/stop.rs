//! `longshore stop`

use http::Method;
use longshore_api::v1::{AppView, InstanceView, ScaleRequest};
use serde_json::json;

use crate::connection::{Connection, ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::target::Target;

/// Stop an instance, or all instances of an app
///
/// A stopped instance is replaced, for the app's count still holds. An app stops by having its
/// count set to 0; `scale` starts it again.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Stops the target.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    match Target::find(&connection.api, &options.project, &options.target).await? {
        Target::Instance(instance) => stop_instance(&connection, &options.project, &instance).await,
        Target::App(app) => stop_app(&connection, &options.project, &app).await,
    }
}

async fn stop_instance(
    connection: &Connection,
    project: &ProjectOption,
    instance: &InstanceView,
) -> Result<(), Failure> {
    let id = instance.id();
    let path = project.path(format_args!("instances/{id}/stop"));
    let () = connection.api.call(Method::POST, &path, None::<&()>).await?;
    connection
        .output
        .data(&json!({ "stopping": id }), |_| format!("{id}: stopping; another takes its place\n"))
}

async fn stop_app(
    connection: &Connection,
    project: &ProjectOption,
    app: &AppView,
) -> Result<(), Failure> {
    let name = &app.app;
    let path = project.path(format_args!("apps/{name}/scale"));
    let request = ScaleRequest { count: 0 };
    let view: AppView = connection.api.call(Method::POST, &path, Some(&request)).await?;
    connection.output.data(&view, |_| {
        let count = app.count.max(1);
        format!(
            "{name}: its instances are ending; `longshore scale {name}={count}` starts it again\n"
        )
    })
}
