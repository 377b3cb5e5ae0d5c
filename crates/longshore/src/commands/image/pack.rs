//! `longshore image pack`

use std::path::{Path, PathBuf};

use longshore_image::pack::{PackOptions, PackOutput, Packed, pack};
use longshore_types::ImageReference;
use serde::Serialize;

use super::push::{self, push_layout};
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind, OrFail, chain};
use crate::supervisor;

/// Make an image of a program and the shared libraries that it needs
///
/// Needs no docker and no base image. The image holds nothing but the program, its libraries and
/// what the dynamic loader reads.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program, an ELF executable for Linux
    program: PathBuf,
    /// Push it to the registry under this name, repository[:tag]
    #[arg(long, value_name = "IMAGE", required_unless_present = "output")]
    push: Option<ImageReference>,
    /// Write it as an OCI layout to this directory
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Arguments that the image runs the program with, after `--`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What was packed, and pushed where that was asked for.
#[derive(Debug, Serialize)]
struct Report {
    digest: String,
    size: u64,
    libraries: Vec<PathBuf>,
    pushed: Option<push::Report>,
}

/// Packs the program.
pub async fn run(options: Options) -> Result<(), Failure> {
    let scratch;
    let layout = match &options.output {
        Some(dir) => dir.as_path(),
        None => {
            scratch = tempfile::tempdir().or_fail(Kind::Other, "cannot make a directory")?;
            &scratch.path().join("image")
        }
    };
    let packed = pack_program(&options.program, layout, &options.arguments).await?;
    let pushed = match options.push {
        None => None,
        Some(image) => {
            let connection = options.connection.connect()?;
            let registry = match &image.registry {
                Some(registry) => registry.clone(),
                None => connection.registry().await?,
            };
            Some(push_layout(layout, &registry, &connection.token, &image).await?)
        }
    };
    let report = Report {
        digest: packed.digest.to_string(),
        size: packed.layer_size.0,
        libraries: packed.libraries,
        pushed,
    };
    options.connection.output().data(&report, render)
}

fn render(report: &Report) -> String {
    match &report.pushed {
        Some(pushed) => push::render(pushed),
        None => format!("{}\n", report.digest),
    }
}

/// Packs the program that runs now, to be run with `arguments`.
pub async fn pack_own_program(layout: &Path, arguments: &[&str]) -> Result<Packed, Failure> {
    let program = supervisor::own_program().or_fail(Kind::Other, "cannot find our own program")?;
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    pack_program(&program, layout, &arguments).await
}

async fn pack_program(
    program: &Path,
    layout: &Path,
    arguments: &[String],
) -> Result<Packed, Failure> {
    let options = PackOptions {
        args: arguments.to_vec(),
        ..PackOptions::new(program, PackOutput::Layout(layout.to_owned()))
    };
    // Reading and compressing block; nothing else goes on meanwhile.
    let packed = tokio::task::spawn_blocking(move || pack(&options))
        .await
        .or_fail(Kind::Other, "packing broke off")?;
    packed.map_err(|error| Failure::new(Kind::Invalid, chain(&error)))
}
