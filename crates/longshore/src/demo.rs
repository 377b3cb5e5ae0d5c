//! `longshore demo`: a platform, an image of this very program, two instances of it, and what there
//! is to see, in one command on a bare machine; or several locations, and one of them cut off.

mod nft;
mod places;
mod platform;
pub mod request;
pub mod server;
mod tour;

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::commands::run_client;
use crate::failure::{Failure, Kind, OrFail};
use crate::output::say;
use platform::{DemoPlatform, Place};

/// Show the whole platform on this machine, from an image to answered requests
///
/// Starts a platform, packs an image, pushes it, deploys two instances, sends them requests, and
/// stays up until Ctrl-C; with --locations one at each place. Needs root; installs nftables with apt-get when nft is missing.
#[derive(Debug, clap::Args)]
pub struct DemoOptions {
    /// End after the requests and leave nothing behind
    #[arg(long)]
    once: bool,
    /// The directory that everything is kept in [default: /var/lib/longshore-demo; with --once a
    /// temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Show so many locations, as far from each other as on Earth, as `longshore world` runs them
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(2..=MOST_LOCATIONS))]
    locations: Option<u64>,
}

const MOST_LOCATIONS: u64 = 8;

/// Where a demo that stays is kept.
const DATA_DIR: &str = "/var/lib/longshore-demo";

/// Runs the demo.
pub fn run(options: DemoOptions) -> Result<(), Failure> {
    nft::ensure()?;
    if let Some(count) = options.locations {
        let count = usize::try_from(count).unwrap_or_default();
        return places::run(count, options.once, options.data_dir);
    }
    let place = match (options.once, options.data_dir) {
        (true, parent) => Place::temporary(parent.as_deref())?,
        (false, dir) => Place::Kept(dir.unwrap_or_else(|| DATA_DIR.into())),
    };
    run_client(async {
        let mut interrupt = signal(SignalKind::interrupt()).or_fail(Kind::Other, "cannot begin")?;
        let mut terminate = signal(SignalKind::terminate()).or_fail(Kind::Other, "cannot begin")?;
        let mut platform = DemoPlatform::start(place)?;
        let outcome = tokio::select! {
            outcome = show(&mut platform, options.once) => outcome,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        if let Err(failure) = &outcome {
            say(platform.log_tail());
            say(failure.to_string());
        }
        say("\nEnding the platform and its instances…");
        let ended = platform.end().await;
        outcome.and(ended)
    })
}

async fn show(platform: &mut DemoPlatform, once: bool) -> Result<(), Failure> {
    let endpoints = platform.ready().await?;
    tour::run(&endpoints, &platform.admin_token_file()).await?;
    if once {
        return Ok(());
    }
    say(tour::next_commands(&endpoints));
    platform.ended_by_itself().await
}
