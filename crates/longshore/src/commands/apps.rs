//! `longshore apps`

use longshore_api::v1::AppView;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::output::table_text;
use crate::table::Table;

/// List the apps of a project
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Lists the apps.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let apps: Vec<AppView> = options.project.on(&connection).apps().await?;
    connection.output.data(&apps, |apps| render(apps))
}

/// The table of `apps`, and below it what an app notes.
pub fn render(apps: &[AppView]) -> String {
    let mut table = Table::new(&["APP", "STATE", "HEALTHY", "RELEASE", "IMAGE", "URL"]);
    for app in apps {
        table.row([
            app.app.to_string(),
            app.state.clone(),
            format!("{}/{}", app.ready, app.count),
            app.release.to_string(),
            app.image.clone(),
            app.urls.first().cloned().unwrap_or_default(),
        ]);
    }
    let mut text = table_text(&table);
    for app in apps {
        if let Some(note) = &app.note {
            text.push_str(&format!("\n{}: {note}\n", app.app));
        }
        if let Some(latency) = app.latency.as_ref().filter(|latency| latency.is_missed()) {
            text.push_str(&format!("\n{}: {}\n", app.app, latency.text()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use longshore_api::v1::LatencyView;

    use super::*;
    use crate::test_views;

    #[test]
    fn notes_follow_the_table_uncut() {
        let mut app = test_views::app("web");
        app.note = Some("x".repeat(100));
        let text = render(&[app, test_views::app("api")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "APP  STATE    HEALTHY  RELEASE  IMAGE          URL");
        assert_eq!(
            lines[1],
            "web  rolling  0/1      r1       default/web:1  http://web.localhost:8080"
        );
        assert_eq!(lines[4], format!("web: {}", "x".repeat(100)));
    }

    #[test]
    fn a_goal_is_told_of_when_it_is_missed() {
        let near = |reached| {
            let latency = LatencyView {
                within: longshore_types::Duration::from_millis(50),
                users: longshore_types::LatencyGoal::USERS,
                reached,
            };
            render(&[AppView { latency: Some(latency), ..test_views::app("web") }])
        };
        let told = "\nweb: 94 % of its users are within 50ms, and 95% should be\n";
        assert!(near(Some(94)).ends_with(told));
        assert_eq!(near(Some(95)), near(None));
    }
}
