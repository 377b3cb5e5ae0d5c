//! The verbs that are clients of the REST API, one file each, and nothing that they could do which
//! another client of the API could not.

pub mod apps;
pub mod attach;
pub mod completions;
pub mod cordon;
pub mod cp;
pub mod deploy;
pub mod drain;
pub mod events;
pub mod exec;
pub mod explain;
pub mod image;
pub mod join_token;
pub mod locations;
pub mod logs;
pub mod man;
pub mod moves;
pub mod nodes;
pub mod place;
pub mod plan;
pub mod port_forward;
pub mod promote;
pub mod ps;
pub mod registry;
pub mod releases;
pub mod removal;
pub mod replay;
pub mod rm;
pub mod rollback;
pub mod run;
pub mod scale;
pub mod schema;
pub mod secret;
pub mod stop;
pub mod store;
pub mod token;
pub mod top;

use std::future::Future;

use crate::failure::{Failure, Kind, OrFail};

/// Runs a command to its end. One thread is enough for what waits for answers.
pub fn run_client<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(Kind::Other, "cannot start")?
        .block_on(command)
}
