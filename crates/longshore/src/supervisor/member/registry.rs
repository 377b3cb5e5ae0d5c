//! This machine as the registry.

use std::net::SocketAddr;
use std::path::PathBuf;

use longshore_link::{Endpoint, Listener};
use longshore_trust::{JoinAs, JoinToken};
use longshore_types::Duration;
use serde::{Deserialize, Serialize};

use super::super::child::RolePlan;
use super::super::home::{Contents, Home};
use super::super::plan::Flags;
use super::super::sockets::reachable;
use super::super::tls::{TlsSettings, UsersTls};
use super::{DRAIN, HomeOptions, Member, Planned};
use crate::failure::{Failure, Kind, OrFail};
use crate::roles::{
    self,
    registry::{ObjectSettings, UpstreamSettings},
};

/// Join the platform as its registry, and run until told to end
///
/// The token comes from `longshore join-token --role registry` and is good once. From then on this machine is
/// started by `longshore registry start`. The platform runs none of its own: `up --registry joined`.
#[derive(Debug, Clone, clap::Args)]
pub struct RegistryJoinOptions {
    /// The token that `longshore join-token` showed
    token: JoinToken,
    #[command(flatten)]
    start: RegistryStartOptions,
}

/// Run this machine as the registry that it joined as
///
/// Locations reach it, so it is not behind a NAT. While the control plane is away they go on to pull; who pushes is
/// told that it is away.
#[derive(Debug, Clone, clap::Args)]
pub struct RegistryStartOptions {
    /// Where users push and pull, without TLS on loopback alone
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4601")]
    listen: SocketAddr,
    /// Speak TLS with them: the certificate that they are shown, with those between it and one that they trust, in
    /// PEM; read again when it changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of that, in PEM, in a file for its owner alone
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speak TLS by a certificate that is made here, for trying: users trust it by DATA-DIR/tls-ca.pem
    #[arg(long)]
    tls_self_signed: bool,
    /// The name or address by which users reach it with TLS [default: the address that it listens on, or the first
    /// name in the certificate]
    #[arg(long, value_name = "HOST")]
    public_host: Option<String>,
    /// Where the control plane and locations call, with certificates on both sides
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4605")]
    locations_listen: SocketAddr,
    /// The host and port by which they reach that [default: the address by which this machine reaches the control
    /// plane]
    #[arg(long, value_name = "HOST:PORT")]
    locations_advertise: Option<String>,
    #[command(flatten)]
    objects: ObjectSettings,
    #[command(flatten)]
    upstreams: UpstreamSettings,
    /// How long a manifest is kept that no tag and no release names
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    keep_untagged: Duration,
    /// Where Prometheus asks for the metrics of the registry [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    metrics_listen: Option<Endpoint>,
    #[command(flatten)]
    home: HomeOptions,
}

/// Where this machine joined.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    /// `host:port` of the control plane.
    global: String,
}

/// The registry, and with what it joins first.
struct Registry<'a> {
    options: &'a RegistryStartOptions,
    joins: Option<JoinToken>,
}

/// Joins and runs the registry.
pub fn join(options: RegistryJoinOptions) -> Result<(), Failure> {
    let RegistryJoinOptions { token, start } = options;
    if token.joins != JoinAs::Registry {
        return Err(super::another(&token, "a registry"));
    }
    super::run(&start.home, Registry { options: &start, joins: Some(token) })
}

/// Runs the registry that this machine joined as.
pub fn start(options: RegistryStartOptions) -> Result<(), Failure> {
    super::run(&options.home, Registry { options: &options, joins: None })
}

impl Member for Registry<'_> {
    const ROLE: &'static str = "registry";
    const CONTENTS: Contents = Contents::Registry;
    const RUNS_INSTANCES: bool = false;

    fn roles(self, home: &Home) -> Result<Planned, Failure> {
        // Before a token is used for nothing.
        let tls = self.options.tls();
        let problems = tls.problems(&[("listen", self.options.listen)]);
        let of_objects = self.options.objects.problems("");
        let problems = [problems, of_objects, self.options.upstreams.problems()].concat();
        if !problems.is_empty() {
            return Err(Failure::of_flags(problems));
        }
        let sockets = Sockets::bind(self.options, tls.is_spoken())?;
        if let Some(token) = self.joins {
            join_as(home, &token)?;
        }
        let membership: Membership = super::membership(home, home.identity_file(), "the registry")?;
        let tls = UsersTls::prepare(&tls, &[self.options.listen], home)?;
        let plan = plan(self.options, home, &membership, (sockets, tls.as_ref()))?;
        let what = format!("the registry runs for {}", membership.global);
        Ok(Planned { waves: vec![vec![plan]], what, tls })
    }
}

fn join_as(home: &Home, token: &JoinToken) -> Result<(), Failure> {
    let file = home.identity_file();
    if super::is_member(&file)? {
        let Membership { global } = super::membership(home, file.clone(), "the registry")?;
        // That control plane knows whether this one was removed, and uses no token up for one that was not. It may be
        // the only one that has these images, so nobody is told to remove them.
        if global != token.address {
            return Err(super::joined_already(&format!("the registry of {global}")));
        }
    }
    super::keep_membership(home, &Membership { global: token.address.clone() })?;
    super::block_on(roles::registry::join(token, &file))?
        .map_err(|error| super::refused(error, token))?;
    tracing::info!("joined as the registry");
    Ok(())
}

impl RegistryStartOptions {
    fn tls(&self) -> TlsSettings {
        TlsSettings {
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            ca: None,
            self_signed: self.tls_self_signed,
            host: self.public_host.clone(),
        }
    }
}

/// The sockets of the role.
struct Sockets {
    users: Listener,
    locations: Listener,
}

impl Sockets {
    fn bind(options: &RegistryStartOptions, by_tls: bool) -> Result<Self, Failure> {
        let bind = |name: &str, endpoint: Endpoint| {
            Listener::bind(name, &endpoint).or_fail(Kind::Other, "cannot begin")
        };
        let to_users = if by_tls { Endpoint::Tls } else { Endpoint::Tcp };
        Ok(Self {
            users: bind("registry", to_users(options.listen.to_string()))?,
            locations: bind("locations", Endpoint::Tls(options.locations_listen.to_string()))?,
        })
    }
}

fn plan(
    options: &RegistryStartOptions,
    home: &Home,
    membership: &Membership,
    (Sockets { users, locations }, tls): (Sockets, Option<&UsersTls>),
) -> Result<RolePlan, Failure> {
    let at = |socket: &Listener| socket.endpoint().or_fail(Kind::Other, "cannot tell an address");
    let (users_at, locations_at) = (at(&users)?, at(&locations)?);
    let advertised = match &options.locations_advertise {
        Some(advertised) => advertised.clone(),
        None => super::advertised(&locations_at, &membership.global)?,
    };
    let public = match tls {
        Some(tls) => {
            let port = users_at.authority().rsplit(':').next().unwrap_or_default();
            format!("https://{}", tls.authority(port))
        }
        None => reachable(users_at.authority()),
    };
    let flags = Flags::below("run")
        .with("data-dir", home.role_dir("registry").display())
        .with("listen", &users_at)
        .with_tls(tls)
        .with("global", Endpoint::Tls(membership.global.clone()))
        .with("locations-listen", &locations_at)
        .with("identity-file", home.identity_file().display())
        .with("locations-advertise", advertised)
        .with("public", public)
        .with_objects(&options.objects)
        .with_upstreams(&options.upstreams)
        .with("keep-untagged", options.keep_untagged)
        .with_some("metrics-listen", options.metrics_listen.as_ref());
    let sockets = vec![("registry", users), ("locations", locations)];
    Ok(RolePlan { role: "registry", args: flags.into_args(), sockets, drain: DRAIN })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: RegistryStartOptions,
    }

    fn options(flags: &[&str]) -> RegistryStartOptions {
        Line::try_parse_from([&["registry"][..], flags].concat()).unwrap().options
    }

    fn home(dir: &std::path::Path) -> Home {
        Home::take(&dir.join("data"), &dir.join("run"), Contents::Registry).unwrap()
    }

    #[test]
    fn the_role_understands_the_flags_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let membership = Membership { global: "127.0.0.1:4604".to_owned() };
        let named = ["--tls-self-signed", "--public-host", "registry.example.com"];
        for (more, public) in [
            (&["--metrics-listen", "http://127.0.0.1:0"][..], "127.0.0.1:"),
            (&named, "https://registry.example.com:"),
            (&["--storage", "s3://images/ours", "--s3-region", "auto"], "127.0.0.1:"),
            (&["--upstream", "ghcr.io=https://ghcr.io"], "127.0.0.1:"),
        ] {
            let free = ["--listen", "127.0.0.1:0", "--locations-listen", "127.0.0.1:0"];
            let options = options(&[&free, more].concat());
            let tls = options.tls();
            let sockets = Sockets::bind(&options, tls.is_spoken()).unwrap();
            let tls = UsersTls::prepare(&tls, &[options.listen], &home).unwrap();
            let plan = plan(&options, &home, &membership, (sockets, tls.as_ref())).unwrap();
            let at = plan.args.iter().position(|arg| arg == "--public").unwrap();
            assert!(plan.args[at + 1].starts_with(public), "{:?}", plan.args);
            let line = ["longshore", plan.role].into_iter();
            let line = line.chain(plan.args.iter().map(String::as_str));
            Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn what_cannot_be_is_told_before_the_token_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        for (flags, part) in [
            (["--listen", "192.0.2.7:4601"], "--listen = \"192.0.2.7:4601\": a loopback address"),
            (["--tls-key", "/k"], "--tls-key = /k: nothing without"),
            (["--public-host", "a.example.com"], "--public-host = a.example.com: nothing without"),
            (["--s3-region", "auto"], "--s3-region = auto: nothing without storage"),
            (["--upstream-ca", "/ca"], "--upstream-ca = /ca: nothing without upstream"),
        ] {
            let options = options(&flags);
            let registry = Registry { options: &options, joins: None };
            let failure = registry.roles(&home).map(drop).unwrap_err();
            assert!(failure.message.contains(part), "{part:?} in {failure}");
        }
    }
}
