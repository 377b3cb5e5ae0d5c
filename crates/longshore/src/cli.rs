//! The command line: every verb, and which code carries it out.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{self, run_client};
use crate::demo;
use crate::failure::{EXIT_CODES, Failure};
use crate::{output, roles, supervisor, world};

/// Makes a set of machines in many places behave as one computer that runs containers.
#[derive(Debug, Parser)]
#[command(
    name = "longshore",
    version,
    after_long_help = EXIT_CODES,
    max_term_width = 100,
    propagate_version = false,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // The platform on this machine.
    Up(Box<supervisor::UpOptions>),
    Demo(demo::DemoOptions),
    World(Box<world::Options>),
    Doctor(supervisor::DoctorOptions),

    // Apps.
    Deploy(commands::deploy::Options),
    Plan(commands::plan::Options),
    Apps(commands::apps::Options),
    Ps(commands::ps::Options),
    Top(commands::top::Options),
    Releases(commands::releases::Options),
    Rollback(commands::rollback::Options),
    Promote(commands::promote::Options),
    Scale(commands::scale::Options),
    Stop(commands::stop::Options),
    Rm(commands::rm::Options),
    Logs(commands::logs::Options),
    Run(Box<commands::run::Options>),
    Attach(commands::attach::Options),
    Exec(commands::exec::Options),
    Cp(commands::cp::Options),
    PortForward(commands::port_forward::Options),
    Explain(commands::explain::Options),
    Events(commands::events::Options),

    // Images, secrets, machines, tokens.
    Image(commands::image::Options),
    Secret(commands::secret::Options),
    Locations(commands::locations::Options),
    Nodes(commands::nodes::Options),
    JoinToken(commands::join_token::Options),
    Cordon(commands::cordon::CordonOptions),
    Uncordon(commands::cordon::UncordonOptions),
    Drain(commands::drain::Options),
    Token(commands::token::Options),
    Store(commands::store::Options),
    Replay(commands::replay::Options),

    // The parts of the platform, one process each; `up` starts them all.
    Global(Box<roles::global::Options>),
    Location(roles::location::Options),
    Node(Box<roles::node::Options>),
    Registry(roles::registry::Options),
    Ingress(roles::ingress::Options),

    Completions(commands::completions::Options),
    Man(commands::man::Options),
    Schema(commands::schema::Options),
    DemoServer(demo::server::Options),
}

/// Reads the command line and carries it out.
pub fn main() -> ExitCode {
    // clap itself ends the process with code 2 on a line that it cannot read.
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(failure) => {
            output::say(failure.to_string());
            failure.exit_code()
        }
    }
}

/// The whole command line, for completions and the reference.
pub fn definition() -> clap::Command {
    Cli::command()
}

impl Command {
    fn run(self) -> Result<ExitCode, Failure> {
        let done = match self {
            Self::Up(options) => supervisor::run(*options),
            Self::Demo(options) => demo::run(options),
            Self::World(options) => world::run(*options),
            Self::Doctor(options) => supervisor::doctor(&options),
            Self::Global(options) => roles::global::run(*options),
            Self::Location(options) => roles::location::run(options),
            Self::Node(options) => roles::node::run(*options),
            Self::Registry(options) => roles::registry::run(options),
            Self::Ingress(options) => roles::ingress::run(options),
            Self::DemoServer(options) => demo::server::run(options),
            Self::Completions(options) => commands::completions::run(&options),
            Self::Man(options) => commands::man::run(&options),
            Self::Schema(options) => commands::schema::run(&options),
            Self::Deploy(options) => run_client(commands::deploy::run(options)),
            Self::Apps(options) => run_client(commands::apps::run(options)),
            Self::Ps(options) => run_client(commands::ps::run(options)),
            Self::Top(options) => run_client(commands::top::run(options)),
            Self::Releases(options) => run_client(commands::releases::run(options)),
            Self::Rollback(options) => run_client(commands::rollback::run(options)),
            Self::Promote(options) => run_client(commands::promote::run(options)),
            Self::Scale(options) => run_client(commands::scale::run(options)),
            Self::Stop(options) => run_client(commands::stop::run(options)),
            Self::Rm(options) => run_client(commands::rm::run(options)),
            Self::Logs(options) => run_client(commands::logs::run(options)),
            Self::Cp(options) => run_client(commands::cp::run(options)),
            Self::PortForward(options) => run_client(commands::port_forward::run(options)),
            Self::Explain(options) => run_client(commands::explain::run(options)),
            Self::Events(options) => run_client(commands::events::run(options)),
            Self::Image(options) => run_client(commands::image::run(options)),
            Self::Secret(options) => run_client(commands::secret::run(options)),
            Self::Locations(options) => run_client(commands::locations::run(options)),
            Self::Nodes(options) => run_client(commands::nodes::run(options)),
            Self::JoinToken(options) => run_client(commands::join_token::run(options)),
            Self::Cordon(options) => run_client(commands::cordon::cordon(options)),
            Self::Uncordon(options) => run_client(commands::cordon::uncordon(options)),
            Self::Drain(options) => run_client(commands::drain::run(options)),
            Self::Token(options) => run_client(commands::token::run(options)),
            Self::Store(options) => run_client(commands::store::run(options)),
            Self::Replay(options) => commands::replay::run(&options),
            Self::Plan(options) => return run_client(commands::plan::run(options)),
            Self::Exec(options) => return run_client(commands::exec::run(options)),
            Self::Run(options) => return run_client(commands::run::run(*options)),
            Self::Attach(options) => return run_client(commands::attach::run(options)),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests;
