//! `longshore plan`

use std::process::ExitCode;

use longshore_api::v1::{Change, Placement, PlanView, WaitingView};
use serde_json::Value;

use super::deploy::ManifestOptions;
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::table::Table;

/// What `--exit-code` ends with when a deploy would change something.
pub const SOMETHING_WOULD_CHANGE: u8 = 8;

/// Show what a deploy would change and where instances would be, and change nothing
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    manifest: ManifestOptions,
    /// End with code 8 when a deploy would change something
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Shows it.
pub async fn run(options: Options) -> Result<ExitCode, Failure> {
    let (document, manifest) = options.manifest.read()?;
    let connection = options.connection.connect()?;
    let project = connection.api.project(&manifest.project);
    let plan = project.plan(&manifest.app, document).await?;
    connection.output.data(&plan, |plan| render(manifest.app.as_str(), plan))?;
    let changed = options.exit_code && plan.current != Some(plan.release);
    Ok(if changed { ExitCode::from(SOMETHING_WOULD_CHANGE) } else { ExitCode::SUCCESS })
}

fn render(app: &str, plan: &PlanView) -> String {
    let (release, current) = (plan.release, plan.current);
    let mut text = match current {
        _ if current == Some(release) => {
            format!("{app}: nothing would change, {release} is deployed already\n")
        }
        Some(current) => format!("{app}: {release} would take the place of {current}\n"),
        None => format!("{app}: {release} would be the first release\n"),
    };
    for change in &plan.changes {
        text.push_str(&describe(change));
    }
    let mut table = Table::new(&["LOCATION", "NOW", "THEN", "WHY"]);
    for Placement { location, before, after, decision } in &plan.placement {
        let why = decision.as_ref().map(|decision| decision.why.clone()).unwrap_or_default();
        table.row([location.to_string(), before.to_string(), after.to_string(), why]);
    }
    if !plan.placement.is_empty() {
        text.push_str(&crate::output::table_text(&table));
    }
    if let Some(WaitingView { missing, decision }) = &plan.waiting {
        let waits = if *missing == 1 { "instance would wait" } else { "instances would wait" };
        text.push_str(&format!("{missing} {waits}\n"));
        super::explain::push_decision(&mut text, decision);
    }
    if let Some(latency) = &plan.latency {
        text.push_str(&format!("there, {}\n", latency.text()));
    }
    text
}

fn describe(Change { field, before, after }: &Change) -> String {
    let show = |value: &Value| value.to_string();
    match (before.as_ref().map(show), after.as_ref().map(show)) {
        (None, after) => format!("  + {field} = {}\n", after.unwrap_or_default()),
        (Some(before), None) => format!("  - {field} = {before}\n"),
        (Some(before), Some(after)) => format!("  ~ {field} = {before} -> {after}\n"),
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::ReleaseNumber;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_comes_goes_and_changes_is_told_apart() {
        let change = |field: &str, before: Option<Value>, after: Option<Value>| Change {
            field: field.to_owned(),
            before,
            after,
        };
        let placement =
            Placement { location: "here".parse().unwrap(), before: 2, after: 1, decision: None };
        let plan = PlanView {
            current: Some(ReleaseNumber(2)),
            release: ReleaseNumber(3),
            changes: vec![
                change("count", Some(json!(2)), Some(json!(1))),
                change("process.env.A", None, Some(json!("x"))),
                change("process.user", Some(json!("1")), None),
            ],
            placement: vec![placement],
            waiting: None,
            latency: None,
        };
        let expected = "web: r3 would take the place of r2\n  ~ count = 2 -> 1\n  \
                        + process.env.A = \"x\"\n  - process.user = \"1\"\n";
        let text = render("web", &plan);
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("here"), "{text}");
        let current = Some(plan.release);
        let same = PlanView { current, changes: vec![], placement: vec![], ..plan };
        assert_eq!(render("web", &same), "web: nothing would change, r3 is deployed already\n");
    }
}
