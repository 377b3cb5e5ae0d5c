//! `longshore exec`

use std::io::Write;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{ExecFrame, ExecRequest, LogStream};
use longshore_api::v1::InstanceView;
use longshore_client::Project;
use longshore_link::LineStream;
use longshore_types::{InstanceId, InstancePhase};

use crate::connection::{Connection, ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::Output;
use crate::target::{self, Target};

/// Run a command in an instance and show what it writes
///
/// Of an app, its oldest healthy instance is taken. Ends with the exit code of the command. The
/// command gets no input.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    /// The user to run as, `user[:group]` [default: the instance's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// The directory to run in [default: the instance's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// A variable to add to the environment; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Runs the command.
pub async fn run(options: Options) -> Result<ExitCode, Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let instance = instance(&connection, &project, &options.target).await?;
    let path = project.path(format_args!("instances/{instance}/exec"));
    let request = ExecRequest {
        command: options.command,
        user: options.user,
        workdir: options.workdir,
        env: options.env,
    };
    let mut frames: LineStream<ExecFrame> =
        project.link().lines(Method::POST, &path, Some(&request)).await?;
    while let Some(frame) = frames.next().await {
        match frame? {
            ExecFrame::Output { stream, data } => show(connection.output, stream, &data)?,
            // The codes of Unix fit into a byte; anything else is a failure all the same.
            ExecFrame::Exit { code } => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
            ExecFrame::Failed { message } => return Err(Failure::new(Kind::Other, message)),
        }
    }
    Err(Failure::new(Kind::Unavailable, "the connection ended before the command did"))
}

/// The instance that is meant. One that is starting is better than none: a program that does not
/// come up is a reason to look inside.
async fn instance(
    connection: &Connection,
    project: &Project,
    target: &str,
) -> Result<InstanceId, Failure> {
    let app = match Target::find(project, target).await? {
        Target::Instance(instance) => return Ok(instance.id().clone()),
        Target::App(app) => app.app,
    };
    let instances = target::instances_of(project, &app).await?;
    let is_healthy = |view: &&InstanceView| view.observed.phase == InstancePhase::Healthy;
    let chosen = instances.iter().find(is_healthy);
    match chosen.or_else(|| instances.iter().find(|view| view.observed.phase.may_run())) {
        Some(view) => {
            connection.output.say(format!("in {}", view.id()));
            Ok(view.id().clone())
        }
        None => Err(Failure::new(Kind::NotFound, format!("no instance of {app} is running"))
            .hint(format!("`longshore ps` and `longshore explain {app}` say why"))),
    }
}

fn show(output: Output, stream: LogStream, data: &str) -> Result<(), Failure> {
    let bytes = STANDARD
        .decode(data)
        .or_fail(Kind::Other, "the platform sent output that cannot be read")?;
    match stream {
        LogStream::Stdout => output.raw(&bytes),
        LogStream::Stderr => std::io::stderr()
            .write_all(&bytes)
            .or_fail(Kind::Other, "cannot write to standard error"),
    }
}
