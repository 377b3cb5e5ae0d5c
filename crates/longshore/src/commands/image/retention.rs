//! `longshore image retention`

use std::num::NonZeroU32;

use longshore_types::{Duration, Repository, Retention};

use super::{failed, registry};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;

/// Show or say how long a repository keeps what no release needs
///
/// With any of the --keep flags, what is said replaces what was said before. A tag stays when it is
/// among the --keep-tags that were pushed last, or was pushed within --keep-tagged, or names what a
/// release needs; the others go with the next collection (`image gc --dry-run` shows them). What
/// they named goes --keep-untagged later.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The repository
    repository: Repository,
    /// So many tags stay, those that were pushed last
    #[arg(long, value_name = "COUNT")]
    keep_tags: Option<NonZeroU32>,
    /// Every tag stays that was pushed in this time
    #[arg(long, value_name = "DURATION")]
    keep_tagged: Option<Duration>,
    /// How long a manifest stays that no tag and no release names [default: what `up --keep-untagged` says]
    #[arg(long, value_name = "DURATION")]
    keep_untagged: Option<Duration>,
    /// Keep every tag again, and the rest as the platform does
    #[arg(long, conflicts_with_all = ["keep_tags", "keep_tagged", "keep_untagged"])]
    keep_all: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Says it, or shows it.
pub async fn run(options: Options) -> Result<(), Failure> {
    let Options { repository, keep_tags, keep_tagged, keep_untagged, keep_all, connection } =
        options;
    let (connection, client) = registry(&connection, None).await?;
    let retention = Retention { keep_tags, keep_tagged, keep_untagged };
    let answer = match keep_all || retention != Retention::default() {
        true => client.set_retention(&repository, &retention).await,
        false => client.retention(&repository).await,
    };
    let retention = answer.map_err(|error| failed(&repository, &error))?;
    connection.output.data(&retention, |retention| render(&repository, retention))
}

fn render(repository: &Repository, retention: &Retention) -> String {
    let Retention { keep_tags, keep_tagged, keep_untagged } = retention;
    let newest = keep_tags.map(|keep| format!("the {keep} tags that were pushed last"));
    let young = keep_tagged.map(|keep| format!("tags pushed within {keep}"));
    let kept: Vec<String> = newest.into_iter().chain(young).collect();
    let kept = match kept.is_empty() {
        true => "every tag".to_owned(),
        false => format!("{}, and what releases need", kept.join(", ")),
    };
    let untagged = match keep_untagged {
        Some(keep) => format!("; what has no tag for {keep}"),
        None => String::new(),
    };
    format!("{repository} keeps {kept}{untagged}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_in_words() {
        let repository: Repository = "default/web".parse().unwrap();
        let all = Retention::default();
        assert_eq!(render(&repository, &all), "default/web keeps every tag\n");
        let some = Retention {
            keep_tags: NonZeroU32::new(5),
            keep_tagged: Some(Duration::from_secs(7 * 86_400)),
            keep_untagged: Some(Duration::from_secs(3600)),
        };
        assert_eq!(
            render(&repository, &some),
            "default/web keeps the 5 tags that were pushed last, tags pushed within 7d, and what \
             releases need; what has no tag for 1h\n"
        );
    }
}
