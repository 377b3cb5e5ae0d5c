//! `longshore logs`

use std::collections::BTreeSet;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use longshore_api::links::{LogLine, LogStream};
use longshore_client::{LogOptions, Project, WatchScope};
use longshore_link::CallError;
use longshore_types::{AppName, Duration, InstanceId, Timestamp};
use serde::Serialize;

use crate::connection::{Connection, ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::target::{self, Target};

/// How many lines are shown of what was written before, unless told otherwise.
const DEFAULT_TAIL: u32 = 100;

/// Show what an instance, or all instances of an app, wrote to its standard output and error
///
/// With --follow, an app's later instances are shown too.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines of each instance to begin with [default: 100, all with --since]
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Only what was written within this span, such as 10m
    #[arg(long, value_name = "SPAN")]
    since: Option<Duration>,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A line and the instance that wrote it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Entry {
    instance: InstanceId,
    #[serde(flatten)]
    line: LogLine,
}

/// Shows the logs.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let since = options.since.map(|span| {
        let millis = u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
        Timestamp(longshore_link::now().0.saturating_sub(millis))
    });
    let reader = Reader {
        project: project.clone(),
        options: LogOptions {
            tail: options.tail.or(since.is_none().then_some(DEFAULT_TAIL)).map(u64::from),
            since: since.unwrap_or_default(),
            follow: options.follow,
        },
    };
    match Target::find(&project, &options.target).await? {
        Target::Instance(instance) => {
            let mut lines = reader.open(instance.id()).await?;
            while let Some(entry) = lines.next().await {
                show(&connection, &entry?, Named::No)?;
            }
            Ok(())
        }
        Target::App(app) if options.follow => follow_app(&connection, &reader, &app.app).await,
        Target::App(app) => {
            for instance in target::instances_of(&project, &app.app).await? {
                let mut lines = reader.open(instance.id()).await?;
                while let Some(entry) = lines.next().await {
                    show(&connection, &entry?, Named::Yes)?;
                }
            }
            Ok(())
        }
    }
}

/// Opens logs of instances.
struct Reader {
    project: Project,
    options: LogOptions,
}

impl Reader {
    async fn open(
        &self,
        instance: &InstanceId,
    ) -> Result<BoxStream<'static, Result<Entry, CallError>>, CallError> {
        let lines = self.project.logs(instance, &self.options).await?;
        let instance = instance.clone();
        let entries = lines.map(move |line| {
            let instance = instance.clone();
            line.map(|line| Entry { instance, line })
        });
        Ok(entries.boxed())
    }
}

/// Shows the logs of all instances of `app`, those that come later included, until interrupted.
async fn follow_app(
    connection: &Connection,
    reader: &Reader,
    app: &AppName,
) -> Result<(), Failure> {
    let scope = WatchScope { app: Some(app.clone()), without_instances: false };
    let mut views = reader.project.watch(&scope).await?;
    let mut opened = BTreeSet::new();
    let mut entries = SelectAll::new();
    loop {
        tokio::select! {
            view = views.next() => {
                let Some(view) = view else { return Ok(()) };
                for instance in view?.instances {
                    if instance.observed.started_at.is_none() || opened.contains(instance.id()) {
                        continue;
                    }
                    match reader.open(instance.id()).await {
                        Ok(lines) => entries.push(lines),
                        // Gone or not there yet; the next view tells.
                        Err(CallError::Refused(_)) => continue,
                        Err(error) => return Err(error.into()),
                    }
                    opened.insert(instance.id().clone());
                }
            }
            Some(entry) = entries.next() => match entry {
                Ok(entry) => show(connection, &entry, Named::Yes)?,
                Err(error) => connection.output.say(format!("a log broke off: {error}")),
            },
        }
    }
}

/// Whether a line says which instance wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Yes,
    No,
}

fn show(connection: &Connection, entry: &Entry, named: Named) -> Result<(), Failure> {
    connection.output.item(entry, |entry| render(entry, named))
}

fn render(entry: &Entry, named: Named) -> String {
    let mark = match entry.line.stream {
        LogStream::Stdout => "",
        LogStream::Stderr => "! ",
    };
    match named {
        Named::Yes => format!("{}  {mark}{}", entry.instance, entry.line.text),
        Named::No => format!("{mark}{}", entry.line.text),
    }
}
