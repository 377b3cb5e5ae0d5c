//! What came of the rows: the figures, and a table for people.

use std::collections::BTreeMap;

use super::images::Form;
use super::pullers::Puller;
use super::{GZIP, Options, Row, ZSTD};
use crate::bench::print_machine;

/// The figures of all rows. The converted form will be one more; until it is there, what compares it is not told.
pub fn figures(rows: &[Row]) -> BTreeMap<&'static str, f64> {
    let ours =
        |form: Form| rows.iter().find(|row| row.puller == Puller::Longshore && row.form == form);
    let mut figures = BTreeMap::new();
    for (name, form) in
        [("plain_gzip_ratio_vs_best_peer", GZIP), ("plain_zstd_ratio_vs_best_peer", ZSTD)]
    {
        if let (Some(ours), Some(best)) = (ours(form), best_peer(rows, form)) {
            figures.insert(name, ours.returned.median() / best.returned.median());
        }
    }
    let containerd = rows.iter().find(|row| {
        matches!(row.puller, Puller::Containerd(_)) && row.form == GZIP && row.failed.is_none()
    });
    if let (Some(ours), Some(containerd)) = (ours(GZIP), containerd) {
        let ratio = middle(&ours.disk_mib) / middle(&containerd.disk_mib);
        figures.insert("disk_ratio_vs_containerd", ratio);
    }
    let ours = rows.iter().filter(|row| row.puller == Puller::Longshore);
    if let Some(peak) = ours.flat_map(|row| &row.peak_mib).copied().max_by(f64::total_cmp) {
        figures.insert("peak_rss_mib", peak);
    }
    figures
}

/// The fastest of the peers with a form.
fn best_peer(rows: &[Row], form: Form) -> Option<&Row> {
    rows.iter()
        .filter(|row| row.form == form && !row.puller.is_ours() && row.failed.is_none())
        .min_by(|one, other| one.returned.median().total_cmp(&other.returned.median()))
}

/// Prints all rows.
pub fn print(rows: &[Row], options: &Options) {
    print_machine();
    println!("seed {}, {:?} from {:?}", options.seed, options.size(), options.from);
    println!(
        "containerd 2.2 and newer, with parallel unpacking, is in no Debian and was not measured"
    );
    println!("our converted form is not there yet: rows and ratios of it are missing\n");
    println!(
        "{:<36} {:<8} {:>22} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "s (min to max)",
        "form",
        "until it returns",
        "on disk",
        "CPU",
        "registry",
        "disk MiB",
        "RSS MiB"
    );
    for row in rows {
        let Row { label, form, failed, .. } = row;
        let form = form.tag();
        if let Some(why) = failed {
            println!("{label:<36} {form:<8} fails: {why}");
            continue;
        }
        let [min, median, max] = row.returned.spread().map(|millis| millis / 1000.0);
        println!(
            "{label:<36} {form:<8} {:>22} {:>8.2} {:>8.2} {:>8.2} {:>8.0} {:>8.0}",
            format!("{median:.2} ({min:.2} to {max:.2})"),
            row.durable.median() / 1000.0,
            middle(&row.cpu),
            middle(&row.registry_cpu),
            middle(&row.disk_mib),
            row.peak_mib.iter().copied().fold(0.0, f64::max),
        );
    }
}

fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::figures::Samples;

    fn row(puller: Puller, form: Form, seconds: u64, disk: f64, failed: Option<&str>) -> Row {
        let mut returned = Samples::default();
        returned.push(Duration::from_secs(seconds));
        Row {
            label: String::new(),
            puller,
            form,
            durable: returned.clone(),
            returned,
            cpu: vec![1.0],
            registry_cpu: vec![1.0],
            disk_mib: vec![disk],
            peak_mib: vec![disk / 10.0],
            failed: failed.map(str::to_owned),
        }
    }

    #[test]
    fn the_best_peer_is_the_fastest_that_did_not_fail() {
        let rows = [
            row(Puller::Longshore, GZIP, 10, 500.0, None),
            row(Puller::LongshoreDirectories, GZIP, 1, 900.0, None),
            row(Puller::Docker, GZIP, 50, 500.0, None),
            row(Puller::Podman(None), GZIP, 1, 500.0, Some("another tree")),
            row(Puller::Containerd(None), GZIP, 40, 1000.0, None),
            row(Puller::Longshore, ZSTD, 10, 500.0, None),
            row(Puller::Docker, ZSTD, 1, 500.0, Some("invalid tar header")),
        ];
        let expected = [
            ("disk_ratio_vs_containerd", 0.5),
            ("peak_rss_mib", 50.0),
            ("plain_gzip_ratio_vs_best_peer", 0.25),
        ];
        assert_eq!(figures(&rows), BTreeMap::from(expected));
    }
}
