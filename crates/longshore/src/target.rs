//! What `INSTANCE|APP` on a command line means.
//!
//! The text alone does not tell: `my-database` reads as an id of an instance of `my` as well as a
//! name of an app. The platform knows, so it is asked, for the instance first.

use longshore_api::v1::{AppView, InstanceView};
use longshore_api::{Problem, ProblemCode};
use longshore_client::{InstanceFilter, Project};
use longshore_link::CallError;
use longshore_types::{AppName, InstanceId, InstancePhase, ProjectName};

use crate::failure::{Failure, Kind};
use crate::output::Output;

/// An instance or an app that exists.
#[derive(Debug)]
pub enum Target {
    /// One instance.
    Instance(Box<InstanceView>),
    /// An app with all its instances.
    App(Box<AppView>),
}

impl Target {
    /// Finds what `text` names.
    pub async fn find(project: &Project, text: &str) -> Result<Self, Failure> {
        if let Ok(id) = text.parse::<InstanceId>()
            && let Some(instance) = existing(project.instance(&id).await)?
        {
            return Ok(Self::Instance(Box::new(instance)));
        }
        let app: AppName = text.parse().map_err(|_| {
            Failure::new(
                Kind::Invalid,
                format!("{text:?} is neither the id of an instance nor the name of an app"),
            )
            .hint("`longshore ps` lists the instances, `longshore apps` the apps")
        })?;
        match project.app(&app).await {
            Ok(app) => Ok(Self::App(Box::new(app))),
            Err(CallError::Refused(problem)) if problem.code == ProblemCode::NotFound => {
                Err(missing(text, project.name(), &problem))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The instances of an app, the oldest first.
pub async fn instances_of(project: &Project, app: &AppName) -> Result<Vec<InstanceView>, Failure> {
    let filter = InstanceFilter { app: Some(app.clone()), ..InstanceFilter::default() };
    let mut instances = project.instances(&filter).await?;
    instances.sort_by_key(|instance| instance.created_at);
    Ok(instances)
}

/// The instance that is meant. One that is starting is better than none: a program that does not
/// come up is a reason to look inside.
pub async fn one_instance(
    output: Output,
    project: &Project,
    target: &str,
) -> Result<InstanceId, Failure> {
    let app = match Target::find(project, target).await? {
        Target::Instance(instance) => return Ok(instance.id().clone()),
        Target::App(app) => app.app,
    };
    let instances = instances_of(project, &app).await?;
    let is_healthy = |view: &&InstanceView| view.observed.phase == InstancePhase::Healthy;
    let chosen = instances.iter().find(is_healthy);
    match chosen.or_else(|| instances.iter().find(|view| view.observed.phase.may_run())) {
        Some(view) => {
            output.say(format!("in {}", view.id()));
            Ok(view.id().clone())
        }
        None => Err(Failure::new(Kind::NotFound, format!("no instance of {app} is running"))
            .hint(format!("`longshore ps` and `longshore explain {app}` say why"))),
    }
}

fn existing<T>(answer: Result<T, CallError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Refused(Problem { code: ProblemCode::NotFound, .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Passes on which name the platform takes to be meant.
fn missing(text: &str, project: &ProjectName, problem: &Problem) -> Failure {
    let meant = problem.detail.split_once("; ").map(|(_, meant)| format!("; {meant}"));
    let message = format!(
        "there is no app and no instance {text} in project {project}{}",
        meant.unwrap_or_default()
    );
    Failure::new(Kind::NotFound, message)
        .hint("`longshore ps` lists the instances, `longshore apps` the apps")
}
