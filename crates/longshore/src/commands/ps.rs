//! `longshore ps`

use longshore_api::v1::InstanceView;
use longshore_client::InstanceFilter;
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
    let project = options.project.on(&connection);
    let instances: Vec<InstanceView> = match &options.app {
        Some(app) => target::instances_of(&project, app).await?,
        None => project.instances(&InstanceFilter::default()).await?,
    };
    let now = longshore_link::now();
    connection.output.data(&instances, |instances| render(instances, now))
}

/// The table of `instances`, and below it what they note: too much for a column.
pub fn render(instances: &[InstanceView], now: Timestamp) -> String {
    let mut table = Table::new(&["INSTANCE", "PHASE", "RELEASE", "WHERE", "AGE", "RESTARTS"]);
    let mut notes = String::new();
    for instance in instances {
        table.row([
            instance.id().to_string(),
            phase(instance),
            release(instance),
            format!("{}/{}", instance.location, instance.node),
            human::age(now, instance.created_at),
            instance.observed.restarts.to_string(),
        ]);
        if let Some(note) = note(instance) {
            notes.push_str(&format!("\n{}: {note}", instance.id()));
        }
    }
    match notes.as_str() {
        "" => table_text(&table),
        notes => format!("{}{notes}\n", table_text(&table)),
    }
}

fn release(instance: &InstanceView) -> String {
    match instance.is_command {
        true => format!("{} (command)", instance.release),
        false => instance.release.to_string(),
    }
}

fn phase(instance: &InstanceView) -> String {
    match (instance.draining, instance.observed.phase) {
        (true, InstancePhase::Healthy | InstancePhase::Unhealthy) => "draining".to_owned(),
        (_, phase) => phase.to_string(),
    }
}

fn note(instance: &InstanceView) -> Option<String> {
    let observed = &instance.observed;
    let exit = observed.last_exit.as_ref().map(|exit| format!("last ended: {exit}"));
    observed.note.clone().or(exit)
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, ExitReason};

    use super::*;
    use crate::test_views;

    #[test]
    fn notes_follow_the_table_uncut() {
        let mut instance = test_views::instance("web-00000001");
        instance.observed.phase = InstancePhase::Backoff;
        instance.observed.restarts = 12;
        let limit = Some(ByteCount::mib(64));
        instance.observed.last_exit = Some(ExitReason::OutOfMemory { peak: limit, limit });
        let text = render(&[instance], Timestamp(90_000));
        assert_eq!(
            text,
            "INSTANCE      PHASE    RELEASE  WHERE    AGE  RESTARTS\n\
             web-00000001  backoff  r1       here/n1  1m   12\n\n\
             web-00000001: last ended: out of memory: used 64 MiB of 64 MiB\n"
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
