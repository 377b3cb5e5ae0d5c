//! `longshore image pack`

use std::path::{Path, PathBuf};

use longshore_image::pack::{Include, PackOptions, PackOutput, Packed, pack};
use longshore_link::chain;
use longshore_types::ImageReference;
use serde::Serialize;

use super::push::{self, push_layout};
use super::registry_of;
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind, OrFail};
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
    /// A file or directory to put into the image; may be repeated
    #[arg(long, value_name = "PATH:/PATH/IN/IMAGE")]
    include: Vec<Include>,
    /// A variable of the environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The user that runs it: uid[:gid], or root or nobody [default: root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Arguments that the image runs the program with, after `--`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What was packed, and pushed where that was asked for.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Report {
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
    let packed = pack_blocking(PackOptions {
        include: options.include,
        env: options.env,
        args: options.arguments,
        user: options.user,
        ..PackOptions::new(options.program, PackOutput::Layout(layout.to_owned()))
    });
    let packed = packed.await?;
    let pushed = match options.push {
        None => None,
        Some(image) => {
            let connection = options.connection.connect()?;
            let registry = registry_of(&connection, Some(&image)).await?;
            Some(push_layout(layout, &registry, &connection, &image).await?)
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
    let args = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let output = PackOutput::Layout(layout.to_owned());
    pack_blocking(PackOptions { args, ..PackOptions::new(program, output) }).await
}

async fn pack_blocking(options: PackOptions) -> Result<Packed, Failure> {
    // Reading and compressing block; nothing else goes on meanwhile.
    let packed = tokio::task::spawn_blocking(move || pack(&options))
        .await
        .or_fail(Kind::Other, "packing broke off")?;
    packed.map_err(|error| Failure::new(Kind::Invalid, chain(&error)))
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}
