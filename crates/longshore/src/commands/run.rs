//! `longshore run`

use std::collections::BTreeMap;
use std::process::ExitCode;

use futures_util::StreamExt as _;
use longshore_client::{Project, WatchScope};
use longshore_types::{
    AppName, Attached, ByteCount, ImageReference, InstanceId, InstancePhase, Manifest, MilliCpu,
    RuntimeName, SecretName, SecretPlace,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::attach;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind};
use crate::progress::Progress;
use crate::terminal::{self, AttachmentOptions, End};

/// Run a program of an image for as long as this command is there
///
/// The platform decides where. Ends with the exit code of the program, which ends with this command
/// unless its terminal is left by --detach-keys; then `longshore attach` returns to it. Nothing is kept
/// of it. Without -t an interrupt (ctrl-c) is passed on, and the second one ends it.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What the app is called meanwhile [default: run- and a random text]
    #[arg(long, value_name = "NAME")]
    name: Option<AppName>,
    #[command(flatten)]
    attachment: AttachmentOptions,
    /// The user to run as, `user[:group]` [default: the image's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// The directory to run in [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// A variable of the environment; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A secret of the project, as a variable or a file; may be repeated
    #[arg(long, value_name = "VARIABLE|PATH=SECRET", value_parser = place_of_secret)]
    secret: Vec<(SecretPlace, SecretName)>,
    /// What is run instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Cores, such as 0.5 [default: 1]
    #[arg(long, value_name = "CORES")]
    cpu: Option<MilliCpu>,
    /// Memory, such as 512MiB [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteCount>,
    /// What it may write to its file system [default: 1GiB]
    #[arg(long, value_name = "BYTES")]
    disk: Option<ByteCount>,
    /// What makes the container
    #[arg(long, value_name = "NAME")]
    runtime: Option<RuntimeName>,
    /// How long it may take until it runs
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: longshore_types::Duration,
    /// The image, as in a manifest
    image: ImageReference,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

fn place_of_secret(text: &str) -> Result<(SecretPlace, SecretName), String> {
    let (place, name) = text.split_once('=').ok_or("VARIABLE=SECRET or /PATH=SECRET")?;
    let place = place.parse::<SecretPlace>().map_err(|error| error.to_string())?;
    Ok((place, name.parse::<SecretName>().map_err(|error| error.to_string())?))
}

/// Runs the program.
pub async fn run(options: Options) -> Result<ExitCode, Failure> {
    let attachment = options.attachment.check(true)?;
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let app = options.name.clone().unwrap_or_else(random_name);
    let document = options.document(&project, &app)?;
    project.deploy(&app, document).await?;
    let end = async {
        let instance = started(&project, &app, options.timeout).await?;
        attach::talk(connection.output, &project, &instance, attachment).await
    }
    .await;
    if !matches!(end, Ok(End::Detached)) {
        // What cannot be removed now is removed by the platform, some time after its end.
        let _ = project.remove(&app).await;
    }
    end?.code()
}

fn random_name() -> AppName {
    let tail: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    let name = format!("run-{}", tail.to_ascii_lowercase());
    name.parse().expect("letters and digits are a name")
}

impl Options {
    /// The manifest of the app.
    fn document(&self, project: &Project, app: &AppName) -> Result<Value, Failure> {
        let tty = self.attachment.tty;
        let attached = if tty { Attached::Terminal } else { Attached::Pipes };
        let env = if tty { terminal::with_term(self.env.clone()) } else { self.env.clone() };
        let variable = |entry: &String| match entry.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), Value::from(value))),
            None => {
                let message = format!("--env {entry:?}: a variable is NAME=VALUE");
                Err(Failure::new(Kind::Invalid, message))
            }
        };
        let env = env.iter().map(variable).collect::<Result<serde_json::Map<_, _>, _>>()?;
        let secrets: BTreeMap<String, &SecretName> =
            self.secret.iter().map(|(place, name)| (place.to_string(), name)).collect();
        let given = |parts: &[(&str, Option<Value>)]| -> Value {
            let parts = parts
                .iter()
                .filter_map(|(key, value)| value.clone().map(|value| ((*key).to_owned(), value)));
            Value::Object(parts.collect())
        };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let mut document = json!({
            "app": app, "project": project.name(), "image": self.image.to_string(),
            "attached": attached, "env": env, "secrets": secrets,
            "process": given(&[
                ("entrypoint", self.entrypoint.as_ref().map(|program| json!([program]))),
                ("command", (!self.command.is_empty()).then(|| json!(self.command))),
                ("user", text(&self.user)),
                ("workdir", text(&self.workdir)),
            ]),
            "resources": given(&[
                ("cpu", self.cpu.map(|cpu| json!(cpu.to_string()))),
                ("memory", self.memory.map(|memory| json!(memory.to_string()))),
                ("disk", self.disk.map(|disk| json!(disk.to_string()))),
            ]),
        });
        if let Some(runtime) = self.runtime {
            document["runtime"] = json!(runtime.as_str());
        }
        Manifest::from_document(&document)
            .map_err(|problems| Failure::from(longshore_api::Problem::invalid(problems)))?;
        Ok(document)
    }
}

/// Waits until the app's instance waits for its client, and shows what is being done meanwhile.
async fn started(
    project: &Project,
    app: &AppName,
    limit: longshore_types::Duration,
) -> Result<InstanceId, Failure> {
    let progress = Progress::begin();
    let scope = WatchScope { app: Some(app.clone()), without_instances: false };
    let mut last = "waiting for the platform".to_owned();
    let watched = async {
        let mut views = project.watch(&scope).await?;
        while let Some(view) = views.next().await {
            let view = view?;
            let Some(instance) = view.instances.first() else {
                if let Some(note) = view.apps.first().and_then(|app| app.note.clone()) {
                    last = note;
                }
                progress.status(format!("{app}: {last}"));
                continue;
            };
            let observed = &instance.observed;
            let note = observed.note.clone();
            last = note.unwrap_or_else(|| format!("{} on {}", observed.phase, instance.location));
            progress.status(format!("{app}: {last}"));
            match observed.phase {
                InstancePhase::Healthy => return Ok(instance.id().clone()),
                InstancePhase::Exited => {
                    return Err(Failure::new(Kind::Other, format!("{app}: {last}")));
                }
                _ => {}
            }
        }
        Err(Failure::new(Kind::Unavailable, "the platform ended before the program began"))
    };
    let interrupted = async {
        // Without a listener the signal ends this process, and the platform notices later.
        match tokio::signal::ctrl_c().await {
            Ok(()) => {}
            Err(_) => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = timeout(limit.0, watched) => outcome,
        () = interrupted => {
            return Err(Failure::new(Kind::Other, "interrupted before the program began"));
        }
    };
    outcome.unwrap_or_else(|_| {
        let message = format!("{app} does not run after {limit}: {last}");
        Err(Failure::new(Kind::TimedOut, message))
    })
}
