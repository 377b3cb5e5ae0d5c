//! Who pulls what: a row for every puller with every form of the image, and what came of it.

use anyhow::{Result, ensure};
use longshore_e2e::image::Compression;

use super::images::Form;
use super::pullers::Puller;
use super::pullers::containerd::Way;
use super::servers::Conversion;
use super::{NEWEST, Options};
use crate::bench::figures::Samples;
use crate::newer_debian;

/// Other settings of a program that take so many times as long as its best ones are not measured again.
const SLOWER: f64 = 1.2;

/// One way to pull one form of the image, and what came of it.
pub struct Row {
    pub puller: Puller,
    pub label: String,
    pub form: Form,
    /// It comes as our registry converted it.
    pub is_converted: bool,
    /// What that took, before it was pulled.
    pub conversion: Option<Conversion>,
    pub returned: Samples,
    pub durable: Samples,
    pub cpu: Vec<f64>,
    pub registry_cpu: Vec<f64>,
    pub came_mib: Vec<f64>,
    pub disk_mib: Vec<f64>,
    pub peak_mib: Vec<f64>,
    /// Processors that others used when a pull began, where those were too many.
    pub beside: Vec<f64>,
    pub failed: Option<String>,
    /// The same program is faster otherwise.
    pub is_left_out: bool,
}

impl Row {
    pub fn new(puller: &Puller, form: Form, is_converted: bool) -> Self {
        let how = if is_converted { ", converted" } else { "" };
        Self {
            label: format!("{}{how}", puller.label()),
            puller: puller.clone(),
            form,
            is_converted,
            conversion: None,
            returned: Samples::default(),
            durable: Samples::default(),
            cpu: Vec::new(),
            registry_cpu: Vec::new(),
            came_mib: Vec::new(),
            disk_mib: Vec::new(),
            peak_mib: Vec::new(),
            beside: Vec::new(),
            failed: None,
            is_left_out: false,
        }
    }
}

/// The rows.
pub fn rows(options: &Options) -> Result<Vec<Row>> {
    let mut pullers = vec![
        Puller::Longshore,
        Puller::LongshoreDirectories,
        Puller::Docker,
        Puller::Podman(None),
        Puller::Containerd(None, Way::Overlayfs),
    ];
    if !options.quick {
        let newest = newer_debian::ensure_root(&NEWEST)?;
        pullers.push(Puller::Podman(Some(newest.clone())));
        let ways = [Way::Overlayfs, Way::Parts, Way::Erofs];
        pullers.extend(ways.map(|way| Puller::Containerd(Some(newest.clone()), way)));
    }
    let forms = options.forms();
    let mut rows = Vec::new();
    for form in forms {
        rows.extend(pullers.iter().map(|puller| Row::new(puller, form, false)));
        // It is the same of whatever a layer was compressed by.
        if form.compression == Compression::Gzip {
            rows.push(Row::new(&Puller::Longshore, form, true));
        }
    }
    rows.retain(|row| options.is_wanted(&row.label));
    ensure!(!rows.is_empty(), "nothing is measured with --only {}", options.only.join(","));
    Ok(rows)
}

/// Leaves those out of the next rounds that are slower than the same program told to do otherwise, and had the machine
/// for themselves.
pub fn leave_out_slower(rows: &mut [Row]) {
    let is_slower = |row: &Row| {
        let others = rows.iter().filter(|other| {
            other.form == row.form
                && other.failed.is_none()
                && other.puller.is_same_program(&row.puller)
        });
        let mut others = others.map(|other| other.returned.median());
        row.beside.is_empty() && others.any(|other| row.returned.median() > other * SLOWER)
    };
    let slower: Vec<bool> = rows.iter().map(is_slower).collect();
    for (row, is_slower) in rows.iter_mut().zip(slower) {
        row.is_left_out |= is_slower;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::pull::{GZIP, ZSTD};

    #[test]
    fn only_other_settings_of_the_same_program_are_left_out() {
        let newest = Some("/newest".into());
        let row = |puller: Puller, form, seconds: u64| {
            let mut row = Row::new(&puller, form, false);
            row.returned.push(Duration::from_secs(seconds));
            row
        };
        let failed = Row {
            failed: Some("no room".to_owned()),
            returned: Samples::default(),
            ..row(Puller::Containerd(newest.clone(), Way::Erofs), ZSTD, 0)
        };
        let disturbed = Row {
            beside: vec![1.0],
            ..row(Puller::Containerd(newest.clone(), Way::Parts), ZSTD, 150)
        };
        let mut rows = [
            row(Puller::Longshore, GZIP, 10),
            row(Puller::Containerd(None, Way::Overlayfs), GZIP, 99),
            row(Puller::Containerd(newest.clone(), Way::Overlayfs), GZIP, 45),
            row(Puller::Containerd(newest.clone(), Way::Parts), GZIP, 49),
            row(Puller::Containerd(newest.clone(), Way::Erofs), GZIP, 40),
            row(Puller::Containerd(newest, Way::Overlayfs), ZSTD, 99),
            failed,
            disturbed,
        ];
        leave_out_slower(&mut rows);
        let left_out: Vec<_> = rows.iter().map(|row| row.is_left_out).collect();
        assert_eq!(left_out, [false, false, false, true, false, false, false, false]);
    }
}
