//! Waiting for a rollout.

use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::v1::ProjectView;
use longshore_client::{Project, WatchScope};
use longshore_link::CallError;
use longshore_types::ReleaseNumber;
use tokio::time::{Instant, sleep_until};

use super::command_output::CommandOutput;
use super::{Progress as Standing, Rollout};
use crate::failure::{Failure, Kind};
use crate::progress::Progress;

/// The time between tries to reach an API that went away meanwhile.
const RETRY: Duration = Duration::from_millis(500);

/// Watches `rollout` until it is over, for `limit` at most, and tells how it goes. An API that is
/// restarted meanwhile is waited for.
pub async fn wait(project: &Project, mut rollout: Rollout, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let progress = Progress::begin();
    let scope = WatchScope { app: Some(rollout.app.clone()), without_instances: false };
    let mut last = None;
    let mut output = CommandOutput::new(project.clone());
    loop {
        let mut views = tokio::select! {
            views = project.watch(&scope) => match views {
                Ok(views) => views,
                Err(error) => {
                    retry(error, &progress, deadline).await?;
                    continue;
                }
            },
            () = sleep_until(deadline) => return Err(late(&rollout, last.as_ref(), limit)),
        };
        loop {
            let view = tokio::select! {
                view = views.next() => view,
                Some(line) = output.next() => {
                    progress.line(&line);
                    continue;
                }
                () = sleep_until(deadline) => return Err(late(&rollout, last.as_ref(), limit)),
            };
            match view {
                Some(Ok(view)) => {
                    for line in rollout.update(&view) {
                        progress.line(&line);
                    }
                    progress.status(rollout.status());
                    if let Some((done, all)) = rollout.steps() {
                        progress.steps(done, all);
                    }
                    output.look(rollout.command(&view)).await;
                    if let Some(outcome) = over(&rollout, last.as_ref().unwrap_or(&view)) {
                        output.rest(|line| progress.line(&line)).await;
                        return outcome;
                    }
                    last = Some(view);
                }
                Some(Err(error)) => {
                    retry(error, &progress, deadline).await?;
                    break;
                }
                None => break,
            }
        }
    }
}

fn over(rollout: &Rollout, last: &ProjectView) -> Option<Result<(), Failure>> {
    let release = rollout.release;
    let failed = |why: String| Some(Err(Failure::new(Kind::Other, why)));
    match rollout.progress() {
        Standing::Underway => None,
        Standing::Done | Standing::Tried => Some(Ok(())),
        Standing::Overtaken => failed(format!(
            "{}: another release was deployed before {release} was complete",
            rollout.app
        )),
        Standing::Failed { now } => Some(Err(given_up(rollout, last, now))),
        Standing::Removed => failed(format!("{} was removed meanwhile", rollout.app)),
    }
}

/// Waits a little when trying again can help, else fails.
async fn retry(error: CallError, progress: &Progress, deadline: Instant) -> Result<(), Failure> {
    if !error.retryable() {
        return Err(error.into());
    }
    progress.status(format!("{error}; trying again"));
    sleep_until(deadline.min(Instant::now() + RETRY)).await;
    Ok(())
}

/// What stood in the way is in the view before the one that says so: then its instances are going.
fn given_up(rollout: &Rollout, last: &ProjectView, now: ReleaseNumber) -> Failure {
    let (app, release) = (&rollout.app, rollout.release);
    if let Some(why) = rollout.failed_command() {
        return Failure::new(Kind::TimedOut, format!("{app}: {why}"));
    }
    let mut message = match now == release {
        true => format!("{app} {release} does not become healthy"),
        false => format!("{app} {release} does not become healthy; {now} runs again"),
    };
    for line in rollout.obstacles(last) {
        message.push_str("\n  ");
        message.push_str(&line);
    }
    Failure::new(Kind::TimedOut, message)
}

fn late(rollout: &Rollout, last: Option<&ProjectView>, limit: Duration) -> Failure {
    let limit = longshore_types::Duration(limit);
    let mut message = format!(
        "{} {} is not healthy after {limit}: {}",
        rollout.app,
        rollout.release,
        rollout.summary()
    );
    for line in last.iter().flat_map(|view| rollout.obstacles(view)) {
        message.push_str("\n  ");
        message.push_str(&line);
    }
    Failure::new(Kind::TimedOut, message).hint(format!(
        "the platform goes on trying; `longshore logs {}` and `longshore ps` show how it goes",
        rollout.app
    ))
}
