//! `longshore exec`

use std::process::ExitCode;

use longshore_api::links::ExecRequest;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind};
use crate::target;
use crate::terminal::{self, AttachmentOptions, End};

/// What a request may take of a URL, which is as long as its command.
const LONGEST_QUERY: usize = 60_000;

/// Run a command in an instance, in a terminal or with pipes
///
/// Of an app, its oldest healthy instance is taken. Ends with the exit code of the command, or 128 and
/// the signal that ended it. Without -t an interrupt (ctrl-c) is passed on to the command, and the
/// second one ends it. What still runs when the connection ends, or its terminal is left by
/// --detach-keys, is ended.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    #[command(flatten)]
    attachment: AttachmentOptions,
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
    let attachment = options.attachment.check(false)?;
    let (stdin, tty) = (attachment.stdin, attachment.tty);
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let instance = target::one_instance(connection.output, &project, &options.target).await?;
    let request = ExecRequest {
        command: options.command,
        user: options.user,
        workdir: options.workdir,
        env: if tty { terminal::with_term(options.env) } else { options.env },
        stdin,
        terminal: tty.then(terminal::size),
    };
    if request.to_query().len() > LONGEST_QUERY {
        let message = "the command and its environment are too long";
        return Err(Failure::new(Kind::Invalid, message).hint("pipe a script into `exec -i`"));
    }
    let socket = project.exec(&instance, &request).await?;
    let end = terminal::attach(socket, attachment).await?;
    if end == End::Detached {
        connection.output.say("left the terminal; what ran in it is ended");
    }
    end.code()
}
