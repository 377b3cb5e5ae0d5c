//! `longshore ps`

use longshore_api::v1::{AppView, InstanceView};
use longshore_types::{AppName, InstancePhase, Timestamp};

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;
use crate::target;

/// List the instances of a project
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only the instances of this app
    app: Option<AppName>,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Lists the instances.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let instances: Vec<InstanceView> = match &options.app {
        Some(app) => {
            // An app without instances is not the same as none of that name.
            let path = options.project.path(format_args!("apps/{app}"));
            let _: AppView = connection.api.get(&path).await?;
            target::instances_of(&connection.api, &options.project, app).await?
        }
        None => connection.api.get(&options.project.path("instances")).await?,
    };
    let now = longshore_link::now();
    connection.output.data(&instances, |instances| render(instances, now))
}

/// The table of `instances`.
pub fn render(instances: &[InstanceView], now: Timestamp) -> String {
    let mut table =
        Table::new(&["INSTANCE", "PHASE", "RELEASE", "WHERE", "AGE", "RESTARTS", "NOTE"]);
    for instance in instances {
        table.row([
            instance.id().to_string(),
            phase(instance),
            instance.release.to_string(),
            format!("{}/{}", instance.location, instance.node),
            human::age(now, instance.created_at),
            instance.observed.restarts.to_string(),
            note(instance),
        ]);
    }
    table_text(&table)
}

fn phase(instance: &InstanceView) -> String {
    match (instance.draining, instance.observed.phase) {
        (true, InstancePhase::Healthy | InstancePhase::Unhealthy) => "draining".to_owned(),
        (_, phase) => phase.to_string(),
    }
}

fn note(instance: &InstanceView) -> String {
    let observed = &instance.observed;
    let exit = observed.last_exit.as_ref().map(|exit| format!("last: {exit}"));
    observed.note.clone().or(exit).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use longshore_types::ExitReason;

    use super::*;
    use crate::test_views;

    #[test]
    fn long_notes_do_not_break_the_table() {
        let mut instance = test_views::instance("web-00000001");
        instance.observed.phase = InstancePhase::Backoff;
        instance.observed.restarts = 12;
        instance.observed.last_exit =
            Some(ExitReason::StartFailed { message: "no such file: /bin/nothing ".repeat(5) });
        let text = render(&[instance], Timestamp(90_000));
        assert_eq!(
            text,
            "INSTANCE      PHASE    RELEASE  WHERE    AGE  RESTARTS  NOTE\n\
             web-00000001  backoff  r1       here/n1  1m   12        last: could not start:…\n"
        );
    }

    #[test]
    fn draining_is_shown_in_place_of_healthy() {
        let mut instance = test_views::instance("web-00000001");
        instance.draining = true;
        instance.observed.phase = InstancePhase::Healthy;
        assert!(render(&[instance.clone()], Timestamp(0)).contains(" draining "));
        instance.observed.phase = InstancePhase::Stopping;
        assert!(render(&[instance], Timestamp(0)).contains(" stopping "));
    }
}
