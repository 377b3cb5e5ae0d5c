//! `longshore cp`

mod pipe;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use futures_util::StreamExt as _;
use longshore_api::links::ArchiveRequest;
use longshore_archive::{
    LeftOut, Owner, PackError, Place, Reach, Rules, Source, Specials, UnpackError, unpack,
};
use longshore_client::Project;
use longshore_link::{ByteStream, CallError, chain};
use longshore_types::{ByteCount, InstanceId};

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output;
use crate::progress::Progress;
use crate::target;

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// How much of the standard input is read at once.
const READ_AT_ONCE: usize = 64 << 10;

/// Copy files out of an instance, or into one
///
/// One side is INSTANCE:PATH or APP:PATH, of which the oldest healthy instance is taken; the other is a
/// path here (one with a colon is written with ./ before it), or `-` for a tar archive on the standard
/// input or output. Directories are copied whole, and with /. at the end of SRC their contents. A DST that
/// is a directory gets the copy under its own name, one that does not exist becomes it.
///
/// Modes, times and links are kept. What is copied in belongs to root inside, what is copied out to you,
/// without setuid bits. Links that could lead out of the destination, devices and sockets are left out and
/// named. The image needs no program for it.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What is copied
    #[arg(value_name = "SRC", value_parser = OsStringValueParser::new().try_map(parse))]
    source: Side,
    /// Where it is copied to
    #[arg(value_name = "DST", value_parser = OsStringValueParser::new().try_map(parse))]
    destination: Side,
    /// Keep owners, by number, and setuid bits
    #[arg(short, long)]
    archive: bool,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    /// In an instance: its id or the name of an app, and a path from `/`.
    Inside(String, String),
    Here(PathBuf),
    Stream,
}

fn parse(text: OsString) -> Result<Side, String> {
    // What an instance has is named by text; a path here may be anything.
    let Some(text) = text.to_str() else { return Ok(Side::Here(text.into())) };
    if text == "-" {
        return Ok(Side::Stream);
    }
    let is_path = text.starts_with('/') || text.starts_with('.');
    match text.split_once(':').filter(|_| !is_path) {
        Some(("", _)) => Err("there is no instance before the colon".to_owned()),
        Some((_, "")) => Err("there is no path after the colon; / is all of it".to_owned()),
        Some((target, path)) => Ok(Side::Inside(target.to_owned(), path.to_owned())),
        None if text.is_empty() => Err("a path is not empty".to_owned()),
        None => Ok(Side::Here(text.into())),
    }
}

/// Which way is copied, and what the side here is.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    In { source: Option<PathBuf>, path: String },
    Out { path: String, destination: Option<PathBuf> },
}

/// What two sides mean: the instance or app, and the work.
fn work(source: Side, destination: Side) -> Result<(String, Work), Failure> {
    let here = |side| match side {
        Side::Here(path) => Some(path),
        _ => None,
    };
    match (source, destination) {
        (Side::Inside(..), Side::Inside(..)) => {
            Err(Failure::new(Kind::Usage, "only one side can be in an instance")
                .hint("copy through a pipe: `longshore cp SRC - | longshore cp - DST`"))
        }
        (Side::Inside(target, path), side) => {
            Ok((target, Work::Out { path, destination: here(side) }))
        }
        (side, Side::Inside(target, path)) => Ok((target, Work::In { source: here(side), path })),
        _ => Err(Failure::new(Kind::Usage, "neither side is in an instance")
            .hint("write INSTANCE:PATH or APP:PATH")),
    }
}

/// Copies.
pub async fn run(options: Options) -> Result<(), Failure> {
    let (target, work) = work(options.source, options.destination)?;
    let connection = options.connection.connect()?;
    let (output, project) = (connection.output, options.project.on(&connection));
    let instance = target::one_instance(output, &project, &target).await?;
    let copy = Copy { project, instance, owners: options.archive, n_bytes: Arc::default() };
    let progress = Progress::begin();
    let n_bytes = Arc::clone(&copy.n_bytes);
    let show = async {
        loop {
            tokio::time::sleep(SHOWN_EVERY).await;
            let n_bytes = ByteCount(n_bytes.load(Ordering::Relaxed));
            progress.status(format!("{n_bytes} copied"));
        }
    };
    let left_out = tokio::select! {
        copied = copy.run(work) => copied?,
        never = show => match never {},
    };
    drop(progress);
    tell(&left_out)
}

/// Says what was left out, which is a failure: the copy is not all of it.
fn tell(left_out: &[LeftOut]) -> Result<(), Failure> {
    for LeftOut { path, why } in left_out {
        // What it is called may come from the instance, and be meant for a terminal.
        output::say(format!("left out {}: {why}", path.escape_debug()));
    }
    match left_out.len() {
        0 => Ok(()),
        number => {
            let (is, number) =
                (if number == 1 { "is" } else { "are" }, human::count(number, "file"));
            let message = format!("{number} {is} left out; the rest is copied");
            Err(Failure::new(Kind::Other, message).hint("`-` as DST gives the archive as it is"))
        }
    }
}

/// A copy that is under way.
struct Copy {
    project: Project,
    instance: InstanceId,
    owners: bool,
    n_bytes: Arc<AtomicU64>,
}

impl Copy {
    async fn run(&self, work: Work) -> Result<Vec<LeftOut>, Failure> {
        match work {
            Work::In { source, path } => self.copy_in(source, path).await,
            Work::Out { path, destination } => {
                let request = ArchiveRequest { path, cp: false, owners: false };
                let archive = self.project.read_files(&self.instance, &request).await?;
                match destination {
                    Some(destination) => self.copy_out(archive, destination).await,
                    None => self.show(archive).await,
                }
            }
        }
    }

    /// Sends what a thread packs or reads meanwhile.
    async fn copy_in(
        &self,
        source: Option<PathBuf>,
        path: String,
    ) -> Result<Vec<LeftOut>, Failure> {
        let request = ArchiveRequest { path, cp: source.is_some(), owners: self.owners };
        let is_stdin = source.is_none();
        let (outlet, archive) = pipe::outgoing(Arc::clone(&self.n_bytes));
        let packed = match source {
            Some(source) => {
                // What is missing is said before anything is asked for.
                let source = Source::find(&source).map_err(pack_failed)?;
                pipe::thread(move || outlet.fill(|out| source.pack(out, Specials::LeftOut)))
            }
            None => pipe::thread(move || outlet.fill(|out| read_stdin(out))),
        };
        let sent = self.project.write_files(&self.instance, &request, archive).await;
        match sent {
            Ok(()) => packed.await.unwrap_or(Ok(Vec::new())).map_err(pack_failed),
            // The thread may wait for an input that never comes.
            Err(error @ CallError::Refused(_)) => Err(error.into()),
            Err(error) if is_stdin => Err(error.into()),
            Err(error) => match packed.await {
                Ok(Err(failure)) if !matches!(failure, PackError::Write(_)) => {
                    Err(pack_failed(failure))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Passes the archive to a thread that unpacks it.
    async fn copy_out(
        &self,
        mut archive: ByteStream,
        destination: PathBuf,
    ) -> Result<Vec<LeftOut>, Failure> {
        let owner = if self.owners { Owner::Kept } else { Owner::Caller };
        let rules = Rules { owner, reach: Reach::Beneath };
        let (inlet, input) = pipe::incoming();
        let unpacked = pipe::thread(move || unpack(input, Place::At(&destination), rules));
        let pass_on = async {
            while let Some(chunk) = archive.next().await {
                let chunk = chunk?;
                self.n_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if !inlet.send(chunk).await {
                    return Ok(()); // The thread says why.
                }
            }
            inlet.end().await;
            Ok::<_, CallError>(())
        };
        let broken: Option<Failure> = tokio::select! {
            passed = pass_on => passed.err().map(Failure::from),
            _ = tokio::signal::ctrl_c() => Some(Failure::new(Kind::Other, "interrupted")),
        };
        // Without an end the thread removes what is not whole, and ends.
        drop(inlet);
        let unpacked = unpacked.await;
        match (broken, unpacked) {
            (Some(failure), _) => Err(failure),
            (None, Ok(unpacked)) => unpacked.map_err(unpack_failed),
            (None, Err(_)) => Err(Failure::new(Kind::Other, "the copy panicked")),
        }
    }

    /// Writes the archive to the standard output.
    async fn show(&self, mut archive: ByteStream) -> Result<Vec<LeftOut>, Failure> {
        if io::stdout().is_terminal() {
            return Err(Failure::new(Kind::Usage, "an archive is not written to a terminal")
                .hint("redirect it, or pipe it into `tar -tv`"));
        }
        let mut stdout = io::stdout().lock();
        while let Some(chunk) = archive.next().await {
            let chunk = chunk?;
            self.n_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if let Err(error) = stdout.write_all(&chunk).and_then(|()| stdout.flush()) {
                let message = format!("cannot write to the standard output: {error}");
                return Err(Failure::new(Kind::Other, message));
            }
        }
        Ok(Vec::new())
    }
}

/// Passes the standard input on.
fn read_stdin(mut out: impl io::Write) -> Result<Vec<LeftOut>, PackError> {
    let (mut stdin, mut buffer) = (io::stdin().lock(), vec![0; READ_AT_ONCE]);
    loop {
        let length = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|source| PackError::Read {
                path: "the standard input".to_owned(),
                source,
            })?,
        };
        if length == 0 {
            return Ok(Vec::new());
        }
        // Each piece goes out at once: more of it may be long in coming.
        let written = out.write_all(&buffer[..length]).and_then(|()| out.flush());
        written.map_err(PackError::Write)?;
    }
}

fn pack_failed(error: PackError) -> Failure {
    let kind = match error {
        PackError::Missing { .. } => Kind::NotFound,
        _ => Kind::Other,
    };
    Failure::new(kind, chain(&error))
}

fn unpack_failed(error: UnpackError) -> Failure {
    let kind = match error {
        UnpackError::Missing { .. } => Kind::NotFound,
        UnpackError::NotDirectory { .. } => Kind::Invalid,
        _ => Kind::Other,
    };
    Failure::new(kind, chain(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn sides_are_read_as_docker_reads_them() {
        let inside = |target: &str, path: &str| Side::Inside(target.to_owned(), path.to_owned());
        for (text, side) in [
            ("web:/etc", inside("web", "/etc")),
            ("web:etc/a:b", inside("web", "etc/a:b")),
            ("-", Side::Stream),
            ("web", Side::Here("web".into())),
            ("./web:/etc", Side::Here("./web:/etc".into())),
            ("/a:b", Side::Here("/a:b".into())),
        ] {
            assert_eq!(parse(text.into()), Ok(side), "{text}");
        }
        for bad in ["", ":/etc", "web:"] {
            assert!(parse(bad.into()).is_err(), "{bad}");
        }
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        assert_eq!(parse(odd.clone()), Ok(Side::Here(odd.into())));
    }

    #[test]
    fn exactly_one_side_is_in_an_instance() {
        let side = |text: &str| parse(text.into()).unwrap();
        for (source, destination) in [("a", "b"), ("-", "-"), ("-", "a"), ("web:/a", "web:/b")] {
            let failure = work(side(source), side(destination)).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage, "{source} {destination}");
            assert!(failure.hint.is_some());
        }
        let (target, out) = work(side("web:/a"), side("-")).unwrap();
        assert_eq!(
            (target.as_str(), out),
            ("web", Work::Out { path: "/a".to_owned(), destination: None })
        );
    }
}
