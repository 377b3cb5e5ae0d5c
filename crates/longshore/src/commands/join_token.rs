//! `longshore join-token`

use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_types::LocationName;

use crate::connection::ConnectionOptions;
use crate::failure::Failure;

/// Make a token by which one machine joins, within an hour
///
/// Shown is the command to run on that machine. The platform must listen for it: `up --nodes-listen` or `up
/// --locations-listen`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The location; the name of the new one with --role location
    #[arg(long, value_name = "NAME", default_value = "local")]
    location: LocationName,
    /// As what the machine joins: a node of a location, or a location of its own
    #[arg(long, value_name = "ROLE", default_value = "node", value_parser = ["node", "location"])]
    role: String,
    /// Let the machine take the place of the location that there is, which lost its own: it goes on with what its
    /// nodes run, and the machine before is refused
    #[arg(long)]
    recover: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Makes one.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let role = match options.role.as_str() {
        "location" => JoinTokenRole::Location,
        _ => JoinTokenRole::Node,
    };
    let request = JoinTokenRequest { location: options.location, role, recover: options.recover };
    let created = connection.api.create_join_token(&request).await?;
    connection.output.data(&created, |JoinTokenCreated { token, .. }| {
        format!("longshore {} join {token}\n", options.role)
    })
}
