//! Whether a command returns when something is asked for or when it is so.

use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::v1::ProjectView;
use longshore_client::{Project, WatchScope};
use longshore_types::AppName;

use crate::failure::{Failure, Kind};

/// The flags.
#[derive(Debug, clap::Args)]
pub struct WaitOptions {
    /// Wait until it is so; `deploy`, `rollback` and `promote` do anyway
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as it is recorded; `scale`, `stop` and `rm` do anyway
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: longshore_types::Duration,
}

impl WaitOptions {
    /// Whether to wait, where one of the two is usual.
    pub fn waits(&self, usually: bool) -> bool {
        (usually || self.wait) && !self.no_wait
    }

    /// How long.
    pub fn limit(&self) -> Duration {
        self.timeout.0
    }
}

/// Waits until what is seen of an app is as `holds` wants it.
pub async fn until(
    project: &Project,
    app: &AppName,
    wait: &WaitOptions,
    holds: impl Fn(&ProjectView) -> bool,
) -> Result<(), Failure> {
    let scope = WatchScope { app: Some(app.clone()), without_instances: false };
    let watched = async {
        let mut views = project.watch(&scope).await?;
        while let Some(view) = views.next().await {
            if holds(&view?) {
                return Ok(());
            }
        }
        Err(Failure::new(Kind::Unavailable, "the platform ended before it was so"))
    };
    tokio::time::timeout(wait.limit(), watched).await.unwrap_or_else(|_| {
        let message = format!("{app}: it is not so after {}", wait.timeout);
        Err(Failure::new(Kind::TimedOut, message)
            .hint("the platform goes on; `longshore ps` shows how far it is"))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        wait: WaitOptions,
    }

    #[test]
    fn the_last_word_holds() {
        for (line, usually, waits) in [
            (&["x"][..], true, true),
            (&["x"], false, false),
            (&["x", "--wait"], false, true),
            (&["x", "--no-wait"], true, false),
            (&["x", "--no-wait", "--wait"], false, true),
            (&["x", "--wait", "--no-wait"], true, false),
        ] {
            assert_eq!(Line::parse_from(line).wait.waits(usually), waits, "{line:?}");
        }
    }
}
