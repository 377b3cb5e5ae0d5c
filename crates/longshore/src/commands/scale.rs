//! `longshore scale`

use std::str::FromStr;

use longshore_types::AppName;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::human;
use crate::rollout::{self, Rollout};
use crate::wait::WaitOptions;

/// Change how many instances of an app should run
///
/// The count holds until the next `scale`, or until a deploy of a changed manifest.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The app and the count; 0 stops all instances and keeps the app
    #[arg(value_name = "APP=COUNT")]
    scale: Scale,
    #[command(flatten)]
    wait: WaitOptions,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// An app and how many of its instances should run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scale {
    app: AppName,
    count: u32,
}

impl FromStr for Scale {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (app, count) = text.split_once('=').ok_or("write APP=COUNT, for instance web=3")?;
        let app = app.parse().map_err(|error| format!("{error}"))?;
        let count = count
            .parse()
            .map_err(|_| format!("the count {count:?} is not a whole number from 0 to 10000"))?;
        Ok(Self { app, count })
    }
}

/// Changes the count.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let Scale { app, count } = options.scale;
    let project = options.project.on(&connection);
    let mut view = project.scale(&app, count).await?;
    if options.wait.waits(false) {
        let rollout = Rollout::new(app.clone(), view.release, view.generation);
        rollout::wait(&project, rollout, options.wait.limit()).await?;
        view = project.app(&app).await?;
    }
    connection.output.data(&view, |view| {
        let wanted = human::count(view.count as usize, "instance");
        format!("{app}: {wanted} should run, {} healthy now\n", view.ready)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_app_and_count() {
        let scale: Scale = "web=3".parse().unwrap();
        assert_eq!((scale.app.as_str(), scale.count), ("web", 3));
        for (bad, part) in [
            ("web", "APP=COUNT"),
            ("web=-1", "whole number"),
            ("web=many", "\"many\""),
            ("Web=1", "app name"),
        ] {
            let error = bad.parse::<Scale>().unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
