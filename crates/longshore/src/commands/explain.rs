//! `longshore explain`

use longshore_api::links::Shortfall;
use longshore_api::v1::{AppView, Explanation, LocationView};
use longshore_client::Client;
use longshore_types::{Decision, LocationName};
use serde::Serialize;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::human;
use crate::target::{self, Target};

/// Say why an instance, or each instance of an app, is where it is, and how its start went
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Explains.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let project = options.project.on(&connection);
    let mut told: Vec<Explained> = Vec::new();
    let instances = match Target::find(&project, &options.target).await? {
        Target::Instance(instance) => vec![*instance],
        Target::App(app) => {
            told.extend(waiting(&connection.api, &app).await?);
            target::instances_of(&project, &app.app).await?
        }
    };
    for instance in &instances {
        told.push(Explained::Placed(Box::new(project.explain(instance.id()).await?)));
    }
    connection.output.data(&told, |told| {
        let texts: Vec<_> = told
            .iter()
            .map(|explained| match explained {
                Explained::Placed(explanation) => render(explanation),
                Explained::Waiting { location, missing } => render_waiting(location, missing),
            })
            .collect();
        texts.join("\n")
    })
}

/// One thing that is explained.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Explained {
    Placed(Box<Explanation>),
    /// Instances that found no place.
    Waiting {
        location: LocationName,
        missing: Shortfall,
    },
}

/// What of an app found no place, at each location.
async fn waiting(api: &Client, app: &AppView) -> Result<Vec<Explained>, Failure> {
    let locations = api.locations().await?;
    let of_app = |missing: &Shortfall| missing.project == app.project && missing.app == app.app;
    let waiting =
        locations.into_iter().flat_map(|LocationView { location, shortfalls, .. }| {
            let shortfalls = shortfalls.into_iter().filter(of_app);
            shortfalls
                .map(move |missing| Explained::Waiting { location: location.clone(), missing })
        });
    Ok(waiting.collect())
}

fn render_waiting(location: &LocationName, missing: &Shortfall) -> String {
    let mut text = format!("{}: {} not placed at {location}\n", missing.app, missing.missing);
    push_decision(&mut text, &missing.decision);
    text
}

/// The explanation in words.
pub fn render(explanation: &Explanation) -> String {
    let instance = &explanation.instance;
    let observed = &instance.observed;
    let mut text = format!(
        "{}: {} of {}, {}\n",
        instance.id(),
        instance.release,
        instance.app,
        observed.phase
    );
    text.push_str(&format!("location {}\n", instance.location));
    push_decision(&mut text, &explanation.location);
    text.push_str(&format!("node {}\n", instance.node));
    push_decision(&mut text, &explanation.node);
    if let Some(ids) = &observed.ids {
        text.push_str(&format!("users: ids {ids} of the machine\n"));
    } else if observed.address.is_some() {
        text.push_str("users: those of the machine (user_namespace = false)\n");
    }
    if !observed.stages.is_empty() {
        text.push_str("last start\n");
        for stage in &observed.stages {
            text.push_str(&format!("  {:<10} {:>10}\n", stage.name, human::micros(stage.micros)));
        }
    }
    if let Some(exit) = &observed.last_exit {
        text.push_str(&format!("last end: {exit}\n"));
    }
    if let Some(note) = &observed.note {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

/// A decision in words, with each candidate.
pub fn push_decision(text: &mut String, decision: &Decision) {
    text.push_str(&format!("  because {}\n", decision.why));
    for candidate in &decision.candidates {
        let chosen = decision.chosen.as_deref() == Some(candidate.name.as_str());
        let verdict = match (chosen, candidate.score) {
            (true, _) => "chosen",
            (false, Some(_)) => "possible",
            (false, None) => "refused",
        };
        text.push_str(&format!("  {verdict:<8} {}: {}\n", candidate.name, candidate.why));
    }
}

#[cfg(test)]
mod tests {
    use longshore_api::links::Stage;
    use longshore_types::{Candidate, Lack, Timestamp};

    use super::*;
    use crate::test_views;

    #[test]
    fn what_found_no_place_is_told_with_every_refusal() {
        let why = "refused: no runsc: not found".to_owned();
        let decision = Decision {
            at: Timestamp(0),
            chosen: None,
            why: "no node can run it with the runtime runsc".to_owned(),
            candidates: vec![Candidate {
                name: "n1".to_owned(),
                score: None,
                why,
                lack: Some(Lack::Runtime),
            }],
        };
        let app = "web".parse().unwrap();
        let missing = Shortfall { project: Default::default(), app, missing: 2, decision };
        assert_eq!(
            render_waiting(&"here".parse().unwrap(), &missing),
            "web: 2 not placed at here\n\
             \x20 because no node can run it with the runtime runsc\n\
             \x20 refused  n1: refused: no runsc: not found\n"
        );
    }

    #[test]
    fn every_candidate_is_shown_with_its_verdict() {
        let candidate = |name: &str, score, why: &str| Candidate {
            name: name.to_owned(),
            score,
            why: why.to_owned(),
            lack: None,
        };
        let decision = |chosen: &str, why: &str, candidates| Decision {
            at: Timestamp(0),
            chosen: Some(chosen.to_owned()),
            why: why.to_owned(),
            candidates,
        };
        let mut instance = test_views::instance("web-00000001");
        instance.observed.ids = longshore_types::IdRange::new(671_088_640);
        instance.observed.stages = vec![Stage { name: "create".to_owned(), micros: 28_400 }];
        let text = render(&Explanation {
            instance,
            location: decision("here", "it is the only one", vec![]),
            node: decision(
                "n1",
                "it has the most free memory",
                vec![
                    candidate("n1", Some(9), "3 GiB free"),
                    candidate("n2", Some(4), "1 GiB free"),
                    candidate("n3", None, "needs 64 MiB, has 10 MiB"),
                ],
            ),
        });
        assert_eq!(
            text,
            "web-00000001: r1 of web, pending\n\
             location here\n  because it is the only one\n\
             node n1\n  because it has the most free memory\n\
             \x20 chosen   n1: 3 GiB free\n\
             \x20 possible n2: 1 GiB free\n\
             \x20 refused  n3: needs 64 MiB, has 10 MiB\n\
             users: ids 671088640 to 671154175 of the machine\n\
             last start\n  create        28.4 ms\n"
        );
    }
}
