//! `longshore stop`

use longshore_api::v1::{AppView, InstanceView, ProjectView};
use longshore_client::Project;
use serde_json::json;

use crate::connection::{Connection, ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::target::Target;
use crate::wait::{self, WaitOptions};

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
    wait: WaitOptions,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Stops the target.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    match Target::find(&project, &options.target).await? {
        Target::Instance(instance) => {
            stop_instance(&connection, &project, &instance, &options).await
        }
        Target::App(app) => stop_app(&connection, &project, &app, &options).await,
    }
}

async fn stop_instance(
    connection: &Connection,
    project: &Project,
    instance: &InstanceView,
    options: &Options,
) -> Result<(), Failure> {
    let id = instance.id();
    project.stop(id).await?;
    if options.wait.waits(false) {
        let is_gone = |view: &ProjectView| view.instances.iter().all(|other| other.id() != id);
        wait::until(project, &instance.app, &options.wait, is_gone).await?;
        let text = |_: &_| format!("{id}: stopped\n");
        return connection.output.data(&json!({ "stopped": id }), text);
    }
    connection
        .output
        .data(&json!({ "stopping": id }), |_| format!("{id}: stopping; another takes its place\n"))
}

async fn stop_app(
    connection: &Connection,
    project: &Project,
    app: &AppView,
    options: &Options,
) -> Result<(), Failure> {
    let name = &app.app;
    let view = project.scale(name, 0).await?;
    let waits = options.wait.waits(false);
    if waits {
        let is_gone = |view: &ProjectView| view.instances.is_empty();
        wait::until(project, name, &options.wait, is_gone).await?;
    }
    connection.output.data(&view, |_| {
        let count = app.count.max(1);
        let state = if waits { "all its instances ended" } else { "its instances are ending" };
        format!("{name}: {state}; `longshore scale {name}={count}` starts it again\n")
    })
}
