//! `longshore attach`

use std::process::ExitCode;

use longshore_api::links::AttachRequest;
use longshore_client::Project;
use longshore_types::InstanceId;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::output::Output;
use crate::target;
use crate::terminal::{self, Attachment, AttachmentOptions, End};

/// Return to what `run` began and was left by --detach-keys
///
/// Ends with the exit code of the program. What an app that was deployed writes is in its log
/// instead, and a shell in it is begun by `exec`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    #[command(flatten)]
    attachment: AttachmentOptions,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Attaches to the program.
pub async fn run(options: Options) -> Result<ExitCode, Failure> {
    let attachment = options.attachment.check(true)?;
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let instance = target::one_instance(connection.output, &project, &options.target).await?;
    talk(connection.output, &project, &instance, attachment).await?.code()
}

/// Attaches to the program of an instance, until it ends or is left.
pub async fn talk(
    output: Output,
    project: &Project,
    instance: &InstanceId,
    attachment: Attachment,
) -> Result<End, Failure> {
    let (stdin, terminal) = (attachment.stdin, attachment.tty.then(terminal::size));
    let socket = project.attach(instance, &AttachRequest { stdin, terminal }).await?;
    let end = terminal::attach(socket, attachment).await?;
    if end == End::Detached {
        output.say(format!(
            "left the terminal; what runs in it goes on\n\
             `longshore attach -it {instance}` returns to it, `longshore rm` ends it"
        ));
    }
    Ok(end)
}
