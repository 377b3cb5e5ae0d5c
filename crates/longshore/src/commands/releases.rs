//! `longshore releases`

use longshore_api::v1::ReleaseView;
use longshore_types::{AppName, Timestamp};

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// List the releases of an app
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The app
    app: AppName,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Lists the releases.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let releases = options.project.on(&connection).releases(&options.app).await?;
    let now = longshore_link::now();
    connection.output.data(&releases, |releases| render(releases, now))
}

fn render(releases: &[ReleaseView], now: Timestamp) -> String {
    let mut table = Table::new(&["RELEASE", "AGE", "COUNT", "IMAGE", "DIGEST", "NOTE"]);
    for release in releases {
        table.row([
            release.number.to_string(),
            human::age(now, release.created_at),
            release.manifest.count.to_string(),
            release.manifest.image.to_string(),
            human::short_digest(&release.image_digest.to_string()).to_owned(),
            if release.current { "current" } else { "" }.to_owned(),
        ]);
    }
    table_text(&table)
}
