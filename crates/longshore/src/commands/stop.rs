//! `longshore stop`

use longshore_api::v1::{AppView, InstanceView, ProjectView};
use longshore_client::Project;
use schemars::JsonSchema;
use serde::Serialize;

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

/// What came of it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Stopped {
    /// The instance or the app.
    stopped: String,
    /// True when nothing of it was left any more; false when it was still ending.
    gone: bool,
}

async fn stop_instance(
    connection: &Connection,
    project: &Project,
    instance: &InstanceView,
    options: &Options,
) -> Result<(), Failure> {
    let id = instance.id();
    project.stop(id).await?;
    let gone = options.wait.waits(false);
    if gone {
        let is_gone = |view: &ProjectView| view.instances.iter().all(|other| other.id() != id);
        wait::until(project, &instance.app, &options.wait, is_gone).await?;
    }
    connection.output.data(&Stopped { stopped: id.to_string(), gone }, |_| match gone {
        true => format!("{id}: stopped; another takes its place\n"),
        false => format!("{id}: stopping; another takes its place\n"),
    })
}

async fn stop_app(
    connection: &Connection,
    project: &Project,
    app: &AppView,
    options: &Options,
) -> Result<(), Failure> {
    let name = &app.app;
    project.scale(name, 0).await?;
    let gone = options.wait.waits(false);
    if gone {
        wait::until(project, name, &options.wait, |view| view.instances.is_empty()).await?;
    }
    connection.output.data(&Stopped { stopped: name.to_string(), gone }, |_| {
        let count = app.count.max(1);
        let state = if gone { "all its instances ended" } else { "its instances are ending" };
        format!("{name}: {state}; `longshore scale {name}={count}` starts it again\n")
    })
}
