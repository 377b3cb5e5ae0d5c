//! `longshore image`

mod gc;
pub mod inspect;
pub mod ls;
pub mod pack;
mod prewarm;
pub mod pull;
pub mod push;
pub mod rates;
mod retention;
mod rm;
pub mod stocked;

use longshore_image::client::{RegistryClient, RegistryClientError};
use longshore_link::chain;
use longshore_types::ImageReference;

use crate::connection::{Connection, ConnectionOptions, RegistryAddress};
use crate::failure::{self, Failure, Kind};

pub use pack::pack_own_program;
pub use push::push_layout;

/// Make, push, pull, list and remove images
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Pack(pack::Options),
    Push(push::Options),
    Pull(pull::Options),
    Ls(ls::Options),
    Prewarm(prewarm::Options),
    Inspect(inspect::Options),
    Rm(rm::Options),
    Gc(gc::Options),
    Retention(retention::Options),
    Rates(rates::Options),
}

/// Carries the verb out.
pub async fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Pack(options) => pack::run(options).await,
        Verb::Push(options) => push::run(options).await,
        Verb::Pull(options) => pull::run(options).await,
        Verb::Ls(options) => ls::run(options).await,
        Verb::Prewarm(options) => prewarm::run(options).await,
        Verb::Inspect(options) => inspect::run(options).await,
        Verb::Rm(options) => rm::run(options).await,
        Verb::Gc(options) => gc::run(options).await,
        Verb::Retention(options) => retention::run(options).await,
        Verb::Rates(options) => rates::run(options).await,
    }
}

/// The registry that `reference` names, else the platform's, with the token of `options`.
async fn registry(
    options: &ConnectionOptions,
    reference: Option<&ImageReference>,
) -> Result<(Connection, RegistryClient), Failure> {
    let connection = options.connect()?;
    let registry = registry_of(&connection, reference).await?;
    let client = client(&registry, &connection)?;
    Ok((connection, client))
}

/// Where the registry is that `reference` names, else the platform's.
async fn registry_of(
    connection: &Connection,
    reference: Option<&ImageReference>,
) -> Result<RegistryAddress, Failure> {
    match reference.and_then(|reference| reference.registry.as_deref()) {
        // How the platform's own is spoken to, it says itself.
        Some(named) => match connection.registry().await {
            Ok(own) if own.authority == named => Ok(own),
            _ => Ok(RegistryAddress::named(named)),
        },
        None => connection.registry().await,
    }
}

fn client(registry: &RegistryAddress, connection: &Connection) -> Result<RegistryClient, Failure> {
    let token = Some(connection.token.clone());
    RegistryClient::trusting(&registry.url(), token, connection.ca.as_deref())
        .map_err(|error| failed(&registry.authority, &error))
}

/// What failed with `what`, a repository or an image.
fn failed(what: impl std::fmt::Display, error: &RegistryClientError) -> Failure {
    let kind = match error {
        RegistryClientError::Url { .. } | RegistryClientError::Read { .. } => Kind::Invalid,
        RegistryClientError::Send { .. } => Kind::Unavailable,
        RegistryClientError::Stalled { .. } => Kind::TimedOut,
        RegistryClientError::Refused { status, .. } => match status.as_u16() {
            401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            400..500 => Kind::Invalid,
            _ => Kind::Unavailable,
        },
        RegistryClientError::Build(_)
        | RegistryClientError::Digest { .. }
        | RegistryClientError::Answer(_) => Kind::Other,
    };
    let failure = Failure::new(kind, format!("{what}: {}", chain(error)));
    match kind {
        Kind::NotFound => failure.hint("`longshore image ls` shows what the registry has"),
        Kind::Denied => failure.hint("`longshore token ls` shows what tokens may do"),
        _ if failure.message.contains(failure::DISTRUST) => failure.hint(failure::TRUST),
        _ => failure,
    }
}
