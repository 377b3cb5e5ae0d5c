//! `longshore image gc`

use longshore_types::garbage::{Garbage, GarbageForm, GarbageItem, GarbageTag};

use super::{failed, registry};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// Remove from the registry what nobody needs, now rather than within the hour
///
/// Manifests that no tag, no release and no index has named for a while (`up --keep-untagged`), what is
/// about manifests that are gone, and blobs that no manifest of their repository names; tags that their
/// repository need not keep (`image retention`); and what was converted of images and no node asked for
/// (`up --keep-converted`). What a push or a pull under way may count on stays.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only show what would be removed, and why
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Removes it, or shows it.
pub async fn run(options: Options) -> Result<(), Failure> {
    let (connection, client) = registry(&options.connection, None).await?;
    let garbage = match options.dry_run {
        true => client.garbage().await,
        false => client.remove_garbage().await,
    };
    let garbage = garbage.map_err(|error| failed("the registry", &error))?;
    connection.output.data(&garbage, render)
}

fn render(garbage: &Garbage) -> String {
    let mut table = Table::new(&["REPOSITORY", "WHAT", "SIZE", "WHY"]);
    for GarbageItem { repository, digest, size, reason } in &garbage.items {
        let kind = if reason.is_of_manifest() { "manifest" } else { "blob" };
        table.row([
            repository.to_string(),
            format!("{kind} {}", &digest.hex()[..12]),
            size.to_string(),
            reason.as_str().to_owned(),
        ]);
    }
    let Garbage { removed, manifests, blobs, bytes, items, tags, converted } = garbage;
    for GarbageForm { repository, image, unused } in converted {
        let kind = format!("converted {}", &image.hex()[..12]);
        let why = format!("no pull for {}", human::coarse(*unused));
        table.row([repository.to_string(), kind, String::new(), why]);
    }
    for GarbageTag { repository, tag, digest: _, n_newer, age } in tags {
        let why = format!("{n_newer} newer, {} old", human::coarse(*age));
        table.row([repository.to_string(), format!("tag {tag}"), String::new(), why]);
    }
    let is_empty = items.is_empty() && tags.is_empty() && converted.is_empty();
    let listed = if is_empty { String::new() } else { table_text(&table) + "\n" };
    let verb = if *removed { "removed" } else { "would remove" };
    let (manifests, blobs) =
        (human::count(*manifests as usize, "manifest"), human::count(*blobs as usize, "blob"));
    let tags = match tags.len() {
        0 => String::new(),
        n => format!("{}, ", human::count(n, "tag")),
    };
    format!("{listed}{verb} {tags}{manifests} and {blobs}, {bytes}\n")
}

#[cfg(test)]
mod tests {
    use longshore_types::garbage::GarbageReason;
    use longshore_types::{ByteCount, Digest, Duration};

    use super::*;

    #[test]
    fn what_would_go_is_told_with_its_reason() {
        let item = |repository: &str, reason| GarbageItem {
            repository: repository.parse().unwrap(),
            digest: Digest::from_sha256([7; 32]),
            size: ByteCount::mib(3),
            reason,
        };
        let none = Garbage::default();
        let items = vec![
            item("default/web", GarbageReason::Untagged),
            item("team/a-rather-long/name", GarbageReason::Unreferenced),
        ];
        let garbage =
            Garbage { manifests: 1, blobs: 1, bytes: ByteCount::mib(6), items, ..none.clone() };
        let text = render(&garbage);
        assert!(text.contains("no tag, no release"), "{text}");
        assert!(text.ends_with("\nwould remove 1 manifest and 1 blob, 6 MiB\n"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let tags = vec![GarbageTag {
            repository: "default/web".parse().unwrap(),
            tag: "1.2".parse().unwrap(),
            digest: Digest::from_sha256([7; 32]),
            n_newer: 20,
            age: Duration::from_millis(3 * 86_400_000 + 7_654_321),
        }];
        let text = render(&Garbage { tags, ..none });
        assert!(text.contains("tag 1.2") && text.contains("20 newer, 3d old"), "{text}");
        assert!(text.ends_with("would remove 1 tag, 0 manifests and 0 blobs, 0 B\n"), "{text}");
        let converted = vec![GarbageForm {
            repository: "default/web".parse().unwrap(),
            image: Digest::from_sha256([7; 32]),
            unused: Duration::from_secs(31 * 86_400 + 5),
        }];
        let text = render(&Garbage { manifests: 1, converted, ..Garbage::default() });
        assert!(text.contains("converted 070707070707"), "{text}");
        assert!(text.contains("no pull for 31d"), "{text}");
        assert!(text.ends_with("would remove 1 manifest and 0 blobs, 0 B\n"), "{text}");
        assert_eq!(
            render(&Garbage { removed: true, ..Garbage::default() }),
            "removed 0 manifests and 0 blobs, 0 B\n"
        );
    }
}
