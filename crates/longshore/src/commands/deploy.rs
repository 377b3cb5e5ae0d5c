//! `longshore deploy`

use std::io::Read;
use std::path::{Path, PathBuf};

use longshore_api::Problem;
use longshore_api::v1::{AppView, DeployResponse};
use longshore_client::Project;
use longshore_types::{Manifest, ProjectName};
use serde_json::Value;

use crate::connection::{Connection, ConnectionOptions};
use crate::failure::{Failure, Kind, OrFail};
use crate::rollout::{self, Rollout};
use crate::wait::WaitOptions;

/// Deploy an app and wait until its instances are healthy
///
/// The image is pinned to the digest that it has now. Deploying the same manifest and image again
/// changes nothing.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    manifest: ManifestOptions,
    #[command(flatten)]
    wait: WaitOptions,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Which manifest.
#[derive(Debug, clap::Args)]
pub struct ManifestOptions {
    /// The manifest; `-` reads standard input
    #[arg(short, long, value_name = "FILE", default_value = "longshore.toml")]
    file: PathBuf,
    /// The project that owns the app [default: what the manifest says, else `default`]
    #[arg(long, env = "LONGSHORE_PROJECT", value_name = "NAME", help_heading = "Connection")]
    project: Option<ProjectName>,
}

/// Deploys the app of the manifest.
pub async fn run(options: Options) -> Result<(), Failure> {
    let (document, manifest) = options.manifest.read()?;
    let connection = options.connection.connect()?;
    let project = connection.api.project(&manifest.project);
    let response = project.deploy(&manifest.app, document).await?;
    follow(&connection, &project, response, &options.wait).await
}

/// The data of a command that makes a release.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Outcome {
    #[serde(flatten)]
    response: DeployResponse,
    app: AppView,
}

impl Outcome {
    /// The same in words.
    fn to_text(&self) -> String {
        let app = &self.app;
        let (name, release) = (&app.app, app.release);
        let mut text = match &app.canary {
            Some(canary) => format!("{name} {release}: {}\n", canary.note()),
            None => format!("{name} {release}: {} of {} healthy\n", app.ready, app.count),
        };
        for url in &app.urls {
            text.push_str(&format!("  {url}\n"));
        }
        text
    }
}

/// Tells of a release that was made, waits until it is all that runs or its canaries wait to be
/// promoted, and tells what came of it.
pub async fn follow(
    connection: &Connection,
    project: &Project,
    response: DeployResponse,
    wait: &WaitOptions,
) -> Result<(), Failure> {
    announce(connection, &response);
    let app = &response.release.manifest.app;
    if wait.waits(true) {
        let rollout = Rollout::new(app.clone(), response.release.number, response.generation);
        rollout::wait(project, rollout, wait.limit()).await?;
    }
    let app = project.app(app).await?;
    if app.canary.as_ref().is_some_and(|canary| canary.is_ready() && canary.wait.is_none()) {
        connection.output.say(format!(
            "`longshore promote {0}` lets {1} take over, `longshore rollback {0}` takes it back",
            app.app, app.release
        ));
    }
    connection.output.data(&Outcome { response, app }, Outcome::to_text)
}

fn announce(connection: &Connection, response: &DeployResponse) {
    let release = &response.release;
    let (app, number) = (&release.manifest.app, release.number);
    connection.output.say(match response.changed {
        true => format!("{app}: release {number} of {}", release.image_digest),
        false => format!("{app}: nothing changed, {number} is deployed already"),
    });
}

impl ManifestOptions {
    /// Reads the manifest and checks it here, so that a slip is told without a platform. The server
    /// checks again: it may know more than this version.
    pub fn read(&self) -> Result<(Value, Manifest), Failure> {
        let name = self.file.display();
        let text = read_text(&self.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::new(Kind::Invalid, format!("there is no manifest {name}"))
                    .hint("name one with --file; examples/web/longshore.toml shows every key")
            }
            _ => Failure::new(Kind::Invalid, format!("cannot read {name}: {error}")),
        })?;
        parse_manifest(&text, self.project.as_ref()).map_err(|mut failure| {
            failure.message = format!("{name}: {}", failure.message);
            failure
        })
    }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// From the text of a manifest to its document and what that means. `project` wins over the
/// manifest's own.
pub fn parse_manifest(
    text: &str,
    project: Option<&ProjectName>,
) -> Result<(Value, Manifest), Failure> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Failure::new(Kind::Invalid, format!("not valid TOML\n{}", error.to_string().trim_end()))
    })?;
    let mut document =
        serde_json::to_value(table).or_fail(Kind::Invalid, "a value cannot be sent as JSON")?;
    if let (Some(project), Some(root)) = (project, document.as_object_mut()) {
        root.insert("project".to_owned(), Value::from(project.as_str()));
    }
    let manifest = Manifest::from_document(&document)
        .map_err(|problems| Failure::from(Problem::invalid(problems)))?;
    Ok((document, manifest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_manifest_is_told_at_once() {
        let failure =
            parse_manifest("imagee = \"x\"\ncount = -1\napp = \"web\"", None).unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
        for part in ["did you mean \"image\"", "image: is required", "count = -1"] {
            assert!(failure.message.contains(part), "{part} in {}", failure.message);
        }
    }

    #[test]
    fn broken_toml_is_told_with_its_line() {
        let failure = parse_manifest("app = \"web\"\nimage = ", None).unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
        assert!(failure.message.contains("line 2"), "{}", failure.message);
    }

    #[test]
    fn the_named_project_wins() {
        let text = "app = \"web\"\nimage = \"a/web\"\nproject = \"mine\"";
        let (_, manifest) = parse_manifest(text, None).unwrap();
        assert_eq!(manifest.project.as_str(), "mine");
        let (document, manifest) = parse_manifest(text, Some(&"other".parse().unwrap())).unwrap();
        assert_eq!(manifest.project.as_str(), "other");
        assert_eq!(document["project"], "other");
    }

    #[test]
    fn the_example_uses_every_key() {
        let text = include_str!("../../../../examples/web/longshore.toml");
        let (document, _) = parse_manifest(text, None).unwrap();
        let mut keys: Vec<String> = Vec::new();
        for (key, value) in document.as_object().unwrap() {
            match value.as_object().filter(|_| key != "env" && key != "secrets") {
                Some(table) => keys.extend(table.keys().map(|inner| format!("{key}.{inner}"))),
                None => keys.push(key.clone()),
            }
        }
        keys.sort();
        // An unknown key names all known ones of its table; none of them may be missing above.
        for table in ["", "resources", "process", "health", "rollout", "release", "egress"] {
            // What is attached to a client has no port, and is made by `longshore run`.
            // A GPU most machines have not.
            let is_left_out = |known: &String| known == "attached" || known == "resources.gpu";
            for known in known_keys(table).into_iter().filter(|known| !is_left_out(known)) {
                assert!(
                    keys.iter().any(|key| *key == known || key.starts_with(&format!("{known}."))),
                    "the example lacks {known}"
                );
            }
        }
    }

    /// The keys that the manifest knows in `table`, from what it says about an unknown one.
    fn known_keys(table: &str) -> Vec<String> {
        let unknown = serde_json::json!({ "zzzzzzzzzzzzzzzzzzzzzz": 1 });
        let (document, prefix) = match table {
            "" => (unknown, String::new()),
            _ => (serde_json::json!({ table: unknown }), format!("{table}.")),
        };
        let problems = Manifest::from_document(&document).unwrap_err();
        let listed = problems
            .iter()
            .find_map(|problem| problem.allowed.strip_prefix("unknown key; known keys: "));
        let listed = listed.unwrap().split(", ");
        listed.map(|key| format!("{prefix}{key}")).collect()
    }
}
