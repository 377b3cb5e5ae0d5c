//! `longshore image rates`

use std::path::PathBuf;

use longshore_image::rates::{MeasureError, Rates, measure};
use longshore_link::chain;
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::output::{Format, Output, table_text};
use crate::table::Table;

/// Measure how fast one core of this machine does each stage of a pull
///
/// For `cargo xtask bench pull --stages`.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Options {
    /// The archive of a layer, uncompressed
    archive: PathBuf,
    /// A directory on the disk that is written to
    #[arg(long, value_name = "DIR")]
    scratch: PathBuf,
    /// Write data as JSON
    #[arg(long)]
    json: bool,
}

/// What each stage can do.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Report {
    stages: Vec<Stage>,
    /// Bytes of the archive by bytes with gzip.
    gzip_ratio: f64,
    /// Bytes of the archive by bytes with zstd.
    zstd_ratio: f64,
    /// Bytes of the contents by bytes in frames that the registry cuts.
    frames_ratio: f64,
}

/// A stage of a pull.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Stage {
    stage: &'static str,
    /// Bytes of the archive in a second of the processor.
    bytes_per_cpu_second: f64,
}

/// Measures.
pub async fn run(options: Options) -> Result<(), Failure> {
    let Options { archive, scratch, json } = options;
    let rates = tokio::task::spawn_blocking(move || measure(&archive, &scratch)).await;
    // It ends only with this process, or by a panic, which goes on here.
    let rates = rates.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let rates = rates.map_err(|error| {
        let kind = match error {
            MeasureError::Io { .. } => Kind::Other,
            MeasureError::Limit { .. } | MeasureError::Layer { .. } => Kind::Invalid,
        };
        Failure::new(kind, chain(&error))
    })?;
    let format = if json { Format::Json } else { Format::Text };
    Output::new(format).data(&Report::from(rates), render)
}

impl From<Rates> for Report {
    fn from(rates: Rates) -> Self {
        let Rates { stages, gzip_ratio, zstd_ratio, frames_ratio } = rates;
        let stages = stages.iter().map(|rate| Stage {
            stage: rate.stage,
            bytes_per_cpu_second: rate.bytes.0 as f64 / rate.cpu.as_secs_f64(),
        });
        Self { stages: stages.collect(), gzip_ratio, zstd_ratio, frames_ratio }
    }
}

fn render(report: &Report) -> String {
    let mut table = Table::new(&["STAGE", "GB PER CPU SECOND"]);
    for Stage { stage, bytes_per_cpu_second } in &report.stages {
        table.row([(*stage).to_owned(), format!("{:.2}", bytes_per_cpu_second / 1e9)]);
    }
    table_text(&table)
}
