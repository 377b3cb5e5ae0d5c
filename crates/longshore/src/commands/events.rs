//! `longshore events`

use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::v1::EventView;
use longshore_link::CallError;
use longshore_types::{ProjectName, Timestamp};

use crate::connection::{Connection, ConnectionOptions};
use crate::failure::{Failure, Kind, OrFail};
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// Show what was changed, by whose token and from where
///
/// Of the projects that the token may look at; what concerns the whole platform, an administrator sees.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only those of this project
    #[arg(long, env = "LONGSHORE_PROJECT", value_name = "NAME")]
    project: Option<ProjectName>,
    /// How many of the last ones
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: u32,
    /// Go on and show events as they come
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// The time between tries to reach an API that went away.
const RETRY: Duration = Duration::from_secs(1);

/// Shows them.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.as_ref();
    if options.follow {
        return follow(&connection, project).await;
    }
    let events = connection.api.events(project, options.limit).await?;
    let now = longshore_link::now();
    connection.output.data(&events, |events| render(events, now))
}

/// Shows events from now on, those too that came while the API was away.
async fn follow(connection: &Connection, project: Option<&ProjectName>) -> Result<(), Failure> {
    let mut last: Option<String> = None;
    loop {
        let ended = follow_once(connection, project, &mut last).await;
        match ended {
            Err(Ended::Call(error)) if !error.retryable() => return Err(error.into()),
            Err(Ended::Failure(failure)) => return Err(failure),
            Err(Ended::Call(_)) | Ok(()) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Why a stream of events is not read on.
enum Ended {
    Call(CallError),
    Failure(Failure),
}

async fn follow_once(
    connection: &Connection,
    project: Option<&ProjectName>,
    last: &mut Option<String>,
) -> Result<(), Ended> {
    let events = connection.api.follow_events(project, last.as_deref()).await;
    let mut events = events.map_err(Ended::Call)?;
    while let Some(event) = events.next().await {
        let event = event.map_err(Ended::Call)?;
        if event.name == "event" {
            let view: EventView = serde_json::from_str(&event.data)
                .or_fail(Kind::Other, "the platform sent an event that cannot be read")
                .map_err(Ended::Failure)?;
            connection.output.item(&view, line).map_err(Ended::Failure)?;
        } else if event.name == "missed" {
            connection.output.say("older events were forgotten meanwhile");
        }
        *last = event.id;
    }
    Ok(())
}

fn line(event: &EventView) -> String {
    let who = event.token.as_ref().map_or("(platform)", |token| token.as_str());
    let project = event.project.as_ref().map(|project| format!("{project}: ")).unwrap_or_default();
    format!("{}  {project}{who} {} {}", human::utc(event.at), event.what, event.subject)
}

fn render(events: &[EventView], now: Timestamp) -> String {
    let mut table = Table::new(&["AGE", "WHO", "FROM", "PROJECT", "WHAT", "TO"]);
    for event in events {
        let who = event.token.as_ref().map_or("(platform)".to_owned(), ToString::to_string);
        table.row([
            human::age(now, event.at),
            who,
            event.from.clone().unwrap_or_default(),
            event.project.as_ref().map(ToString::to_string).unwrap_or_default(),
            event.what.clone(),
            event.subject.clone(),
        ]);
    }
    table_text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_what_and_from_where() {
        let event = |token: Option<&str>, from: Option<&str>, what: &str| EventView {
            at: Timestamp(0),
            token: token.map(|name| name.parse().unwrap()),
            from: from.map(str::to_owned),
            project: Some(ProjectName::default()),
            what: what.to_owned(),
            subject: "web r2".to_owned(),
        };
        let events =
            [event(Some("ci"), Some("10.0.0.1:4000"), "deploy"), event(None, None, "complete")];
        let expected = "\
AGE  WHO         FROM           PROJECT  WHAT      TO
1m   ci          10.0.0.1:4000  default  deploy    web r2
1m   (platform)                 default  complete  web r2
";
        assert_eq!(render(&events, Timestamp(60_000)), expected);
        assert_eq!(line(&events[0]), "1970-01-01T00:00:00Z  default: ci deploy web r2");
    }
}
