//! The one binary: the CLI, the supervisor, and every role of the platform as a process.
//!
//! - [`cli`] reads the command line; [`commands`] has one file per verb that is a client of the API.
//! - [`supervisor`] is `longshore up`; [`roles`] are the processes that it starts, and the only place
//!   where services are put together.
//! - [`world`] is `longshore world`: many locations on one machine.
//! - [`demo`] is `longshore demo`: a platform, an image of this program, and a tour of both.
//!
//! A `shim` is turned to first of all, before a thread exists or anything is parsed: it makes
//! containers by clone without exec, which a process with threads cannot do safely.
//! Test: `cargo nextest run -p longshore`.

mod cli;
mod commands;
mod connection;
mod context_file;
mod demo;
mod failure;
mod human;
mod inheritance;
mod logging;
mod output;
mod progress;
mod roles;
mod rollout;
mod said;
mod state_file;
mod store_tls;
mod supervisor;
mod table;
mod target;
mod terminal;
#[cfg(test)]
mod test_views;
mod wait;
mod world;

use std::process::ExitCode;

use longshore_network::HOLD_NAMESPACES_VERB;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("shim") => longshore_runtime::shim_main(args),
        Some("shim-exec") => longshore_runtime::exec_main(args),
        Some("shim-archive") => longshore_runtime::archive_main(args),
        Some(HOLD_NAMESPACES_VERB) => longshore_network::hold_namespaces_main(args),
        _ => cli::main(),
    }
}
