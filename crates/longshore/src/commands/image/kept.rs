//! `longshore image ls --why`

use longshore_types::Repository;
use longshore_types::garbage::{KeptManifest, KeptReason};

use super::{failed, registry};
use crate::connection::ConnectionOptions;
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// Lists the manifests of a repository, each with why it is there.
pub async fn list(connection: &ConnectionOptions, repository: &Repository) -> Result<(), Failure> {
    let (connection, client) = registry(connection, None).await?;
    let kept = client.kept(repository).await.map_err(|error| failed(repository, &error))?;
    connection.output.data(&kept, |kept| render(kept))
}

fn render(kept: &[KeptManifest]) -> String {
    let mut table = Table::new(&["DIGEST", "TAGS", "KEPT FOR"]);
    for KeptManifest { digest, tags, size: _, kept } in kept {
        let or_none = |texts: Vec<String>| match texts.is_empty() {
            true => "-".to_owned(),
            false => texts.join(", "),
        };
        table.row([
            short(&digest.to_string()),
            or_none(tags.iter().map(ToString::to_string).collect()),
            or_none(kept.iter().map(reason).collect()),
        ]);
    }
    table_text(&table)
}

fn short(digest: &str) -> String {
    human::short_digest(digest).to_owned()
}

fn reason(reason: &KeptReason) -> String {
    match reason {
        KeptReason::Release { release } => format!("release {release}"),
        KeptReason::Tagged => "a tag".to_owned(),
        KeptReason::Asked => "a push or pull lately".to_owned(),
        KeptReason::Young { left } => format!("its age, for {} yet", human::coarse(*left)),
        KeptReason::PartOf { manifest } => format!("the index {}", short(&manifest.to_string())),
        KeptReason::About { manifest } => {
            format!("what it is about, {}", short(&manifest.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Digest, Duration};

    use super::*;

    #[test]
    fn each_manifest_is_told_with_all_that_keeps_it() {
        let digest = |n| Digest::from_sha256([n; 32]);
        let manifest = |n, tags: &[&str], kept| KeptManifest {
            digest: digest(n),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            size: ByteCount(500),
            kept,
        };
        let release = KeptReason::Release { release: "web r3".to_owned() };
        let left = Duration::from_secs(6 * 86_400 + 4000);
        let text = render(&[
            manifest(0x11, &["1", "latest"], vec![release, KeptReason::Tagged]),
            manifest(0x22, &[], vec![KeptReason::Asked, KeptReason::Young { left }]),
            manifest(0x33, &[], vec![KeptReason::PartOf { manifest: digest(0x11) }]),
            manifest(0x44, &[], vec![KeptReason::About { manifest: digest(0x33) }]),
            manifest(0x55, &[], vec![]),
        ]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").filter(|cell| !cell.is_empty()).collect())
            .collect();
        let told: Vec<_> = lines[1..].iter().map(|line| (line[1].trim(), line[2].trim())).collect();
        assert_eq!(
            told,
            [
                ("1, latest", "release web r3, a tag"),
                ("-", "a push or pull lately, its age, for 6d yet"),
                ("-", "the index sha256:111111111111"),
                ("-", "what it is about, sha256:333333333333"),
                ("-", "-"),
            ]
        );
    }
}
