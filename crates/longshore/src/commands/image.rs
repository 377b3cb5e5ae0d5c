//! `longshore image`

mod gc;
pub mod inspect;
mod kept;
pub mod ls;
pub mod pack;
mod prewarm;
pub mod pull;
pub mod push;
pub mod rates;
mod retention;
mod rm;
pub mod stocked;

use std::path::PathBuf;

use longshore_image::client::{
    Credentials, DockerConfig, DockerConfigError, RegistryClient, RegistryClientError, Trust,
};
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
    let credentials = credentials(registry, &connection.token, docker_config_file())?;
    let trust = match (connection.ca.as_deref(), registry.is_own) {
        (None, _) => Trust::Machine,
        (Some(ca), true) => Trust::Only(ca),
        (Some(ca), false) => Trust::Also(ca),
    };
    RegistryClient::connect(&registry.url(), &credentials, trust)
        .map_err(|error| failed(&registry.authority, &error))
}

/// With what a registry is logged in to: the platform's with the token, which no other gets; another one as docker
/// would.
fn credentials(
    registry: &RegistryAddress,
    token: &str,
    docker_config: Option<PathBuf>,
) -> Result<Credentials, Failure> {
    let token = || Credentials::Token(token.to_owned());
    if registry.is_own {
        return Ok(token());
    }
    let of_docker = |path: PathBuf| match DockerConfig::read(&path)? {
        Some(config) => config.credentials(&registry.authority),
        None => Ok(Credentials::Anonymous),
    };
    let found = docker_config.map_or(Ok(Credentials::Anonymous), of_docker);
    let found = found.map_err(|error: DockerConfigError| {
        Failure::new(Kind::Invalid, format!("{}: {}", registry.authority, chain(&error)))
    })?;
    // It may be the platform's by another name.
    Ok(if found == Credentials::Anonymous && registry.is_here() { token() } else { found })
}

/// Where docker keeps who a user is to registries.
fn docker_config_file() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = of("DOCKER_CONFIG").or_else(|| Some(of("HOME")?.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// What failed with `what`, a repository or an image.
fn failed(what: impl std::fmt::Display, error: &RegistryClientError) -> Failure {
    let kind = match error {
        RegistryClientError::Url { .. }
        | RegistryClientError::Read { .. }
        | RegistryClientError::Unspeakable => Kind::Invalid,
        RegistryClientError::Send { .. } => Kind::Unavailable,
        RegistryClientError::Stalled { .. } => Kind::TimedOut,
        RegistryClientError::Refused { status, .. } => match status.as_u16() {
            401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            400..500 => Kind::Invalid,
            _ => Kind::Unavailable,
        },
        RegistryClientError::Build(_)
        | RegistryClientError::Realm { .. }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_the_platform_and_to_this_machine_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        // The Base64 of `me:secret`.
        let said = r#"{"auths": {"a.test": {"auth": "bWU6c2VjcmV0"}, "b.test": {"auth": "?"}}}"#;
        std::fs::write(&file, said).unwrap();
        let token = Credentials::Token("lsh_1".to_owned());
        let of_docker =
            Credentials::Password { user: "me".to_owned(), password: "secret".to_owned() };
        let own = RegistryAddress { is_own: true, ..RegistryAddress::named("a.test") };
        for (registry, expected) in [
            (own, &token),
            (RegistryAddress::named("a.test"), &of_docker),
            (RegistryAddress::named("docker.io"), &Credentials::Anonymous),
            (RegistryAddress::named("localhost:5000"), &token),
        ] {
            let found = credentials(&registry, "lsh_1", Some(file.clone())).unwrap();
            assert_eq!(found, *expected, "{registry:?}");
        }
        let none = credentials(&RegistryAddress::named("a.test"), "lsh_1", None).unwrap();
        assert_eq!(none, Credentials::Anonymous);
        let bad = credentials(&RegistryAddress::named("b.test"), "lsh_1", Some(file)).unwrap_err();
        assert_eq!(bad.kind, Kind::Invalid);
        assert!(bad.message.contains("b.test"), "{bad}");
    }
}
