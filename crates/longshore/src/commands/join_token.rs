//! `longshore join-token`

use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest};
use longshore_types::LocationName;

use crate::connection::ConnectionOptions;
use crate::failure::Failure;

/// Make a token by which one machine joins a location as a node, within an hour
///
/// Shown is the command to run on that machine. The platform must listen for nodes: `up --nodes-listen`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The location
    #[arg(long, value_name = "NAME", default_value = "local")]
    location: LocationName,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Makes one.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let request = JoinTokenRequest { location: options.location };
    let created = connection.api.create_join_token(&request).await?;
    connection
        .output
        .data(&created, |JoinTokenCreated { token, .. }| format!("longshore node join {token}\n"))
}
