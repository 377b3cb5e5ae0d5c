//! `longshore secret`

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use longshore_api::v1::SecretView;
use longshore_types::{SecretName, SecretValue, Timestamp};

use super::schema::Removed;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind, OrFail};
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// Set, list and remove secrets of a project
///
/// A manifest names those that an app sees, in its table `secrets`; nobody else sees them.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Set(SetOptions),
    Ls(ListOptions),
    Rm(RemoveOptions),
    RotateKey(RotateKeyOptions),
}

/// Set a secret to what standard input says
///
/// It is not an argument, for everybody on the machine can see those. One line end at its end is left
/// out. What runs keeps the value that it has; the next deploy takes the new one.
#[derive(Debug, clap::Args)]
struct SetOptions {
    /// The name of the secret
    name: SecretName,
    /// Read the value from a file instead, byte for byte
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// List the secrets, without their values
#[derive(Debug, clap::Args)]
struct ListOptions {
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Remove a secret that no app uses
#[derive(Debug, clap::Args)]
struct RemoveOptions {
    /// The name of the secret
    name: SecretName,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Seal all secrets with a new key, and forget the old one
#[derive(Debug, clap::Args)]
struct RotateKeyOptions {
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Carries the verb out.
pub async fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Set(options) => set(options).await,
        Verb::Ls(options) => list(options).await,
        Verb::Rm(options) => remove(options).await,
        Verb::RotateKey(options) => rotate_key(options).await,
    }
}

async fn set(options: SetOptions) -> Result<(), Failure> {
    let value = match &options.from_file {
        Some(file) => {
            let doing = format!("cannot read {}", file.display());
            SecretValue::new(std::fs::read(file).or_fail(Kind::Invalid, doing)?)
        }
        None => from_input(&options.name)?,
    };
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let view = project.set_secret(&options.name, value).await?;
    connection.output.data(&view, |view| {
        let mut text = format!("{} {}\n", view.name, view.version);
        for app in &view.used_by {
            text.push_str(&format!("  {app} keeps the version that it has until it is deployed\n"));
        }
        text
    })
}

fn from_input(name: &SecretName) -> Result<SecretValue, Failure> {
    let mut input = std::io::stdin();
    let mut bytes = Vec::new();
    if input.is_terminal() {
        crate::output::say(format!("the value of {name}, then Enter:"));
        bytes = without_echo(|| {
            let mut line = String::new();
            input.read_line(&mut line).map(|_| line.into_bytes())
        })
        .or_fail(Kind::Invalid, "cannot read the value")?;
    } else {
        input.read_to_end(&mut bytes).or_fail(Kind::Invalid, "cannot read the value")?;
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(SecretValue::new(bytes))
}

/// Reads while the terminal does not show what is typed.
fn without_echo(read: impl FnOnce() -> std::io::Result<Vec<u8>>) -> std::io::Result<Vec<u8>> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let terminal = std::io::stdin();
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
    let read = read();
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    read
}

async fn list(options: ListOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let secrets = options.project.on(&connection).secrets().await?;
    let now = longshore_link::now();
    connection.output.data(&secrets, |secrets| render(secrets, now))
}

fn render(secrets: &[SecretView], now: Timestamp) -> String {
    let mut table = Table::new(&["SECRET", "VERSION", "AGE", "USED BY"]);
    for secret in secrets {
        let apps: Vec<_> = secret.used_by.iter().map(|app| app.as_str()).collect();
        table.row([
            secret.name.to_string(),
            secret.version.to_string(),
            human::age(now, secret.created_at),
            apps.join(", "),
        ]);
    }
    table_text(&table)
}

async fn remove(options: RemoveOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    options.project.on(&connection).remove_secret(&options.name).await?;
    let removed = Removed { removed: options.name.to_string() };
    connection.output.data(&removed, |removed| format!("{}: removed\n", removed.removed))?;
    Ok(())
}

async fn rotate_key(options: RotateKeyOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let view = connection.api.rotate_secret_key().await?;
    connection.output.data(&view, |view| {
        format!("sealed anew with another key: {}\n", human::count(view.resealed as usize, "value"))
    })
}

#[cfg(test)]
mod tests {
    use longshore_types::SecretVersion;

    use super::*;

    #[test]
    fn a_secret_is_listed_with_all_but_its_value() {
        let secret = SecretView {
            name: "database-url".parse().unwrap(),
            version: SecretVersion(2),
            created_at: Timestamp(0),
            used_by: vec!["api".parse().unwrap(), "web".parse().unwrap()],
        };
        let expected =
            "SECRET        VERSION  AGE  USED BY\ndatabase-url  v2       1m   api, web\n";
        assert_eq!(render(&[secret], Timestamp(60_000)), expected);
    }
}
