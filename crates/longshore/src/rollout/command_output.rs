//! What a release's command writes, told while the rollout is waited for.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use longshore_client::{LogOptions, Project};
use longshore_types::InstanceId;

/// How long to wait for the rest of the output of a command that has ended.
const REST: Duration = Duration::from_millis(500);

/// The logs of the command's instances; more than one when a node died.
pub struct CommandOutput {
    project: Project,
    opened: BTreeSet<InstanceId>,
    lines: SelectAll<BoxStream<'static, String>>,
}

impl CommandOutput {
    pub fn new(project: Project) -> Self {
        Self { project, opened: BTreeSet::new(), lines: SelectAll::new() }
    }

    /// Opens the log of an instance that is seen for the first time.
    pub async fn look(&mut self, instance: Option<&InstanceId>) {
        let Some(instance) = instance.filter(|instance| !self.opened.contains(*instance)) else {
            return;
        };
        let options = LogOptions { tail: Some(1000), follow: true, ..LogOptions::default() };
        // Gone already, or not reached now: the next view tells, and what matters is in its notes.
        let Ok(lines) = self.project.logs(instance, &options).await else { return };
        self.opened.insert(instance.clone());
        let lines =
            lines.filter_map(|line| async move { Some(format!("  | {}", line.ok()?.text)) });
        self.lines.push(lines.boxed());
    }

    /// The next line, when there may be one.
    pub async fn next(&mut self) -> Option<String> {
        self.lines.next().await
    }

    /// Tells what is left.
    pub async fn rest(&mut self, tell: impl Fn(String)) {
        while let Ok(Some(line)) = tokio::time::timeout(REST, self.lines.next()).await {
            tell(line);
        }
    }
}
