//! `longshore explain`

use longshore_api::v1::{AppExplanation, Explanation, LocationShortfall, WaitingView};
use longshore_types::{Candidate, Decision, GpuShare, Lack, Priority};
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
            told.push(Explained::App(Box::new(project.explain_app(&app.app).await?)));
            target::instances_of(&project, &app.app).await?
        }
    };
    for instance in &instances {
        told.push(Explained::Instance(Box::new(project.explain(instance.id()).await?)));
    }
    connection.output.data(&told, |told| {
        let texts: Vec<_> = told
            .iter()
            .map(|explained| match explained {
                Explained::App(app) => render_app(app),
                Explained::Instance(explanation) => render(explanation),
            })
            .collect();
        texts.join("\n")
    })
}

/// One thing that is explained.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Explained {
    /// What of an app runs, and what waits for what.
    App(Box<AppExplanation>),
    /// Why an instance is where it is.
    Instance(Box<Explanation>),
}

/// How much of an app runs, in words.
fn render_app(told: &AppExplanation) -> String {
    let AppExplanation { app, summary, waiting, shortfalls, staying, latency, priority, .. } = told;
    let mut text = format!("{app}: {summary}\n");
    if let Some(WaitingView { missing, decision }) = waiting {
        text.push_str(&format!("{missing} at no location\n"));
        push_decision(&mut text, decision);
    }
    for LocationShortfall { location, shortfall } in shortfalls {
        text.push_str(&format!("{} not placed at {location}\n", shortfall.missing));
        push_decision(&mut text, &shortfall.decision);
    }
    if let Some(staying) = staying {
        text.push_str(&format!("{staying}\n"));
    }
    if let Some(latency) = latency {
        text.push_str(&format!("{}\n", latency.text()));
    }
    if *priority != Priority::default() {
        text.push_str(&format!("priority {priority}\n"));
    }
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
    for GpuShare { index, memory } in instance.gpus.iter() {
        text.push_str(&format!("GPU {index}: {memory}\n"));
    }
    if let Some(ids) = &observed.ids {
        text.push_str(&format!("users: ids {ids} of the machine\n"));
    } else if observed.address.is_some() {
        text.push_str("users: those of the machine (user_namespace = false)\n");
    }
    if !observed.stages.is_empty() {
        text.push_str("last start\n");
        for stage in &observed.stages {
            text.push_str(&format!("  {:<10} {:>10}\n", stage.name, human::micros(stage.micros)));
            for note in &stage.notes {
                text.push_str(&format!("    {note}\n"));
            }
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

/// A decision in words: each candidate with its score or its refusal, and what would have to change.
pub fn push_decision(text: &mut String, decision: &Decision) {
    text.push_str(&format!("  because {}\n", decision.why));
    for Candidate { name, score, why, lack } in &decision.candidates {
        let chosen = decision.chosen.as_deref() == Some(name.as_str());
        let verdict = match (chosen, score) {
            (true, _) => "chosen",
            (false, Some(_)) => "possible",
            (false, None) => "refused",
        };
        let score = score.map(|score| format!(" (score {score})")).unwrap_or_default();
        text.push_str(&format!("  {verdict:<8} {name}{score}: {why}\n"));
        if let Some(remedy) = lack.map(Lack::remedy).filter(|remedy| !remedy.is_empty()) {
            text.push_str(&format!("           to change that: {remedy}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_api::links::{Shortfall, Stage};
    use longshore_api::v1::LatencyView;
    use longshore_types::Timestamp;

    use super::*;
    use crate::test_views;

    #[test]
    fn what_waits_is_told_with_every_refusal_and_what_would_have_to_change() {
        let refused = |name: &str, lack, why: &str| Candidate {
            name: name.to_owned(),
            score: None,
            why: format!("refused: {why}"),
            lack: Some(lack),
        };
        let decision = |why: &str, candidate| Decision {
            at: Timestamp(0),
            chosen: None,
            why: why.to_owned(),
            candidates: vec![candidate],
        };
        let of_location =
            decision("no node has room", refused("n1", Lack::Runtime, "no runsc: not found"));
        let app: longshore_types::AppName = "web".parse().unwrap();
        let (project, room) = Default::default();
        let shortfall =
            Shortfall { project, app: app.clone(), missing: 2, decision: of_location, room };
        let text = render_app(&AppExplanation {
            app,
            count: 8,
            ready: 5,
            summary: "5 of 8 run; 1 waits: no location is in eu".to_owned(),
            waiting: Some(WaitingView {
                missing: 1,
                decision: decision("no location is in eu", refused("sin", Lack::Report, "silent")),
            }),
            shortfalls: vec![LocationShortfall { location: "here".parse().unwrap(), shortfall }],
            staying: Some("some of it is still where it may not be".to_owned()),
            latency: Some(LatencyView {
                within: longshore_types::Duration::from_millis(50),
                users: longshore_types::LatencyGoal::USERS,
                reached: Some(62),
            }),
            priority: Priority::new(80).unwrap(),
        });
        assert_eq!(
            text,
            "web: 5 of 8 run; 1 waits: no location is in eu\n\
             1 at no location\n\
             \x20 because no location is in eu\n\
             \x20 refused  sin: refused: silent\n\
             \x20          to change that: it has to report again\n\
             2 not placed at here\n\
             \x20 because no node has room\n\
             \x20 refused  n1: refused: no runsc: not found\n\
             \x20          to change that: the runtime has to be installed there, or the manifest has to \
             choose another\n\
             some of it is still where it may not be\n\
             62 % of its users are within 50ms, and 95% should be\n\
             priority 80\n"
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
        let memory = longshore_types::ByteCount::gib(60);
        instance.gpus = vec![GpuShare { index: 1, memory }].into();
        instance.observed.ids = longshore_types::IdRange::new(671_088_640);
        instance.observed.stages = vec![Stage {
            name: "create".to_owned(),
            micros: 28_400,
            notes: vec!["1 of 2 layers came converted".to_owned()],
        }];
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
             \x20 chosen   n1 (score 9): 3 GiB free\n\
             \x20 possible n2 (score 4): 1 GiB free\n\
             \x20 refused  n3: needs 64 MiB, has 10 MiB\n\
             GPU 1: 60 GiB\n\
             users: ids 671088640 to 671154175 of the machine\n\
             last start\n  create        28.4 ms\n    1 of 2 layers came converted\n"
        );
    }
}
