//! `longshore events`

use longshore_api::v1::EventView;
use longshore_types::{ProjectName, Timestamp};

use crate::connection::ConnectionOptions;
use crate::failure::Failure;
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
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Shows them.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let mut path = format!("/v1/events?limit={}", options.limit);
    if let Some(project) = &options.project {
        path.push_str(&format!("&project={project}"));
    }
    let events: Vec<EventView> = connection.api.get(&path).await?;
    let now = longshore_link::now();
    connection.output.data(&events, |events| render(events, now))
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
    }
}
