//! `longshore join-token`

use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_types::{Country, LocationName};

use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind, OrFail};

/// Make a token by which one machine joins, within an hour
///
/// Shown is the command to run on that machine. The platform must listen for it: `up --nodes-listen` or `up
/// --locations-listen`; for a registry also `up --registry joined`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The location, local when none is named; the name of the new one with --role location
    #[arg(long, value_name = "NAME")]
    location: Option<LocationName>,
    /// As what the machine joins: a node of a location, a location of its own, or the registry
    #[arg(long, value_name = "ROLE", default_value = "node", value_parser = ["node", "location", "registry"])]
    role: String,
    /// Let the machine take the place of the location that there is, which lost its own: it goes on with what its
    /// nodes run, and the machine before is refused
    #[arg(long)]
    recover: bool,
    /// With --role location: the country in which it is to be, such as NL; it counts as in no other from then on, so
    /// that apps with another jurisdiction stay away whatever it says
    #[arg(long, value_name = "CODE")]
    country: Option<Country>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Makes one.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let role = match options.role.as_str() {
        "location" => JoinTokenRole::Location,
        "registry" => JoinTokenRole::Registry,
        _ => JoinTokenRole::Node,
    };
    // The registry joins none.
    let local = (role != JoinTokenRole::Registry).then(|| "local".parse());
    let local = local.transpose().or_fail(Kind::Other, "the name of a location")?;
    let location = options.location.or(local);
    let Options { recover, country, .. } = options;
    let request = JoinTokenRequest { location, role, recover, country };
    let created = connection.api.create_join_token(&request).await?;
    let country = country.map_or(String::new(), |country| format!(" --country {country}"));
    connection.output.data(&created, |JoinTokenCreated { token, .. }| {
        format!("longshore {} join {token}{country}\n", options.role)
    })
}
