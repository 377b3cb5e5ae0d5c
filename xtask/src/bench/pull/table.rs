//! What came of the rows: the figures, and a table for people.

use std::collections::{BTreeMap, BTreeSet};

use longshore_e2e::image::Compression;

use super::pullers::Puller;
use super::pullers::containerd::Way;
use super::rows::Row;
use super::servers::Conversion;
use super::{GZIP, Options, mib};
use crate::bench::print_machine;

/// The figures of all rows; of a ratio the worst of those of one layer and of twelve.
pub fn figures(rows: &[Row]) -> BTreeMap<&'static str, f64> {
    let n_layers: BTreeSet<usize> = rows.iter().map(|row| row.form.n_layers).collect();
    let mut figures: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (name, ratio) in n_layers.into_iter().flat_map(|n_layers| ratios(rows, n_layers)) {
        let worst = figures.entry(name).or_insert(ratio);
        *worst = worst.max(ratio);
    }
    let containerd = rows.iter().find(|row| {
        matches!(row.puller, Puller::Containerd(_, Way::Overlayfs))
            && row.form == GZIP
            && row.failed.is_none()
    });
    let ours = rows
        .iter()
        .find(|row| row.puller == Puller::Longshore && row.form == GZIP && !row.is_converted);
    if let (Some(ours), Some(containerd)) = (ours, containerd) {
        let ratio = middle(&ours.disk_mib) / middle(&containerd.disk_mib);
        figures.insert("disk_ratio_vs_containerd", ratio);
    }
    let ours = rows.iter().filter(|row| row.puller == Puller::Longshore);
    if let Some(peak) = ours.flat_map(|row| &row.peak_mib).copied().max_by(f64::total_cmp) {
        figures.insert("peak_rss_mib", peak);
    }
    let n_beside: usize = rows.iter().map(|row| row.beside.len()).sum();
    figures.insert("pulls_beside_others", n_beside as f64);
    figures
}

/// Ours beside the best peer with each form, and as we converted it beside the best of all and docker.
fn ratios(rows: &[Row], n_layers: usize) -> Vec<(&'static str, f64)> {
    let rows =
        || rows.iter().filter(move |row| row.form.n_layers == n_layers && row.failed.is_none());
    let ours = |compression: Compression, is_converted: bool| {
        rows().find(|row| {
            row.puller == Puller::Longshore
                && row.form.compression == compression
                && row.is_converted == is_converted
        })
    };
    let best = |is_wanted: &dyn Fn(&Row) -> bool| {
        rows()
            .filter(|row| !row.puller.is_ours() && is_wanted(row))
            .min_by(|one, other| one.returned.median().total_cmp(&other.returned.median()))
    };
    let (gzip, zstd) = (Compression::Gzip, Compression::Zstd);
    let docker = |row: &Row| row.puller == Puller::Docker && row.form.compression == gzip;
    let compared = [
        (
            "plain_gzip_ratio_vs_best_peer",
            ours(gzip, false),
            best(&|row| row.form.compression == gzip),
        ),
        (
            "plain_zstd_ratio_vs_best_peer",
            ours(zstd, false),
            best(&|row| row.form.compression == zstd),
        ),
        ("full_pull_ratio_vs_best_peer", ours(gzip, true), best(&|_| true)),
        ("full_pull_ratio_vs_docker_gzip", ours(gzip, true), best(&docker)),
    ];
    let compared = compared.into_iter();
    compared
        .filter_map(|(name, ours, peer)| {
            Some((name, ours?.returned.median() / peer?.returned.median()))
        })
        .collect()
}

/// Prints all rows.
pub fn print(rows: &[Row], options: &Options) {
    print_machine();
    println!("seed {}, {:?} from {:?}", options.seed, options.size(), options.from);
    println!(
        "containerd 2.2 and newer, with parallel unpacking, is in no Debian and was not measured"
    );
    println!("what is converted comes from a registry of ours, and was pushed as gzip\n");
    let width = rows.iter().map(|row| row.label.len()).max().unwrap_or_default();
    print!("{:<width$} {:<8} {:>22}", "s (min to max)", "form", "until it returns");
    let columns = ["on disk", "CPU", "registry", "came MiB", "disk MiB", "RSS MiB"];
    columns.iter().for_each(|column| print!(" {column:>8}"));
    println!();
    rows.iter().for_each(|row| print_row(row, width));
    print_notes(rows);
}

fn print_row(row: &Row, width: usize) {
    let (label, form) = (&row.label, row.form.tag());
    if let Some(why) = &row.failed {
        println!("{label:<width$} {form:<8} fails: {why}");
        return;
    }
    let [min, median, max] = row.returned.spread().map(|millis| millis / 1000.0);
    let returned = format!("{median:.2} ({min:.2} to {max:.2})");
    print!("{label:<width$} {form:<8} {returned:>22}");
    for time in [row.durable.median() / 1000.0, middle(&row.cpu), middle(&row.registry_cpu)] {
        print!(" {time:>8.2}");
    }
    let peak = row.peak_mib.iter().copied().fold(0.0, f64::max);
    for mib in [middle(&row.came_mib), middle(&row.disk_mib), peak] {
        print!(" {mib:>8.0}");
    }
    println!();
    if let Some(Conversion { took, cpu, bytes }) = row.conversion {
        let [took, cpu] = [took, cpu].map(|time| time.as_secs_f64());
        println!(
            "  before it: {took:.1} s to convert, {cpu:.1} of the registry's CPU, {:.0} MiB more of its disk",
            mib(bytes)
        );
    }
}

/// What else is to be known of the rows.
fn print_notes(rows: &[Row]) {
    println!("\nwhat came over loopback has requests and acknowledgements in it");
    for Row { label, form, .. } in rows.iter().filter(|row| row.is_left_out) {
        let form = form.tag();
        println!("{label} {form} was not measured again: the same program is faster otherwise");
    }
    for row in rows.iter().filter(|row| !row.beside.is_empty()) {
        let (n_beside, n_pulls) = (row.beside.len(), row.returned.len());
        let most = row.beside.iter().copied().fold(0.0, f64::max);
        println!(
            "{} {}: {n_beside} of {n_pulls} pulls began while others used up to {most:.1} processors",
            row.label,
            row.form.tag()
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
    use crate::bench::pull::ZSTD;
    use crate::bench::pull::images::Form;

    fn row(puller: &Puller, form: Form, seconds: u64, disk: f64, failed: Option<&str>) -> Row {
        let mut row = Row::new(puller, form, false);
        row.returned.push(Duration::from_secs(seconds));
        row.disk_mib.push(disk);
        row.peak_mib.push(disk / 10.0);
        row.failed = failed.map(str::to_owned);
        row
    }

    #[test]
    fn the_best_peer_is_the_fastest_that_did_not_fail() {
        let converted = Row { is_converted: true, ..row(&Puller::Longshore, GZIP, 4, 500.0, None) };
        let twelve = Form { n_layers: 12, ..GZIP };
        let rows = [
            row(&Puller::Longshore, GZIP, 10, 500.0, None),
            converted,
            row(&Puller::LongshoreDirectories, GZIP, 1, 900.0, None),
            row(&Puller::Docker, GZIP, 50, 500.0, None),
            row(&Puller::Podman(None), GZIP, 1, 500.0, Some("another tree")),
            row(&Puller::Containerd(None, Way::Overlayfs), GZIP, 40, 1000.0, None),
            row(&Puller::Longshore, ZSTD, 10, 500.0, None),
            row(&Puller::Docker, ZSTD, 1, 500.0, Some("invalid tar header")),
            row(&Puller::Podman(None), ZSTD, 20, 500.0, None),
            Row {
                beside: vec![1.5, 0.7],
                ..row(&Puller::Containerd(None, Way::Overlayfs), ZSTD, 30, 900.0, None)
            },
            row(&Puller::Longshore, twelve, 10, 500.0, None),
            row(&Puller::Docker, twelve, 20, 500.0, None),
        ];
        let expected = [
            ("disk_ratio_vs_containerd", 0.5),
            ("full_pull_ratio_vs_best_peer", 0.2),
            ("full_pull_ratio_vs_docker_gzip", 0.08),
            ("peak_rss_mib", 50.0),
            // Of twelve layers, where ours gains less.
            ("plain_gzip_ratio_vs_best_peer", 0.5),
            ("plain_zstd_ratio_vs_best_peer", 0.5),
            ("pulls_beside_others", 2.0),
        ];
        assert_eq!(figures(&rows), BTreeMap::from(expected));
    }
}
