//! `longshore doctor`

use std::path::{Path, PathBuf};

use longshore_api::Problem;
use longshore_link::now;
use longshore_trust::{CertificateNews, PublicCertificates, PublicFiles};
use serde::Serialize;

use super::preflight::{Facts, Obstacle, find_program};
use super::settings::Settings;
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Format, Output};

/// Say what this machine lacks to run the platform, and what to do about it
///
/// It changes nothing. `up` looks at the same, and at the ports and directories that it takes. Ends with
/// code 1 when something is missing. Certificates that end soon are told too, when it knows of them.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorOptions {
    /// The directory that everything would be kept in
    #[arg(long, value_name = "DIR", default_value = "/var/lib/longshore")]
    data_dir: PathBuf,
    /// The directory for sockets and mounts
    #[arg(long, value_name = "DIR", default_value = "/run/longshore")]
    run_dir: PathBuf,
    /// The config file of `up`, whose certificates are looked at
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Findings {
    /// The release of the kernel.
    kernel: String,
    /// What is missing.
    missing: Vec<Obstacle>,
    /// Whether the kernel has EROFS; without it images are unpacked file by file.
    erofs: bool,
    /// Runtimes that apps may ask for, beside the one that is built in.
    runtimes: Vec<PathBuf>,
    /// What should be known of certificates for users: what cannot be used, has expired or will soon.
    certificates: Vec<String>,
}

/// Looks, and tells.
pub fn run(options: &DoctorOptions) -> Result<(), Failure> {
    let facts = Facts::observe(&options.data_dir, &options.run_dir);
    let runtimes = ["runc", "crun", "runsc"].into_iter().filter_map(find_program).collect();
    let certificates = match &options.config {
        Some(path) => complaints(path)?,
        None => Vec::new(),
    };
    let missing = facts.obstacles();
    let (kernel, erofs) = (facts.kernel, facts.has_erofs);
    let findings = Findings { kernel, missing, erofs, runtimes, certificates };
    let format = if options.json { Format::Json } else { Format::Text };
    Output::new(format).data(&findings, render)?;
    match findings.missing.len() {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Other, "the platform cannot run here: one thing is missing")),
        n => Err(Failure::new(
            Kind::Other,
            format!("the platform cannot run here: {n} things are missing"),
        )),
    }
}

/// What should be known of the certificates that a config file names.
fn complaints(path: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path);
    let text = text.or_fail(Kind::Invalid, format!("cannot read {}", path.display()))?;
    let node = "doctor".parse().or_fail(Kind::Other, "cannot begin")?;
    let settings = Settings::load(Settings::defaults(node), Some(&text), &[]);
    let settings = settings.map_err(|problems| Failure::from(Problem::invalid(problems)))?;
    let users = settings.tls.cert.zip(settings.tls.key);
    let users = users.map(|(chain, key)| PublicFiles::Pair { chain, key });
    let apps = settings.ingress_tls.dir.map(PublicFiles::Directory);
    let mut told = Vec::new();
    for files in users.into_iter().chain(apps) {
        let certificates = match PublicCertificates::open(files) {
            Ok(certificates) => certificates,
            Err(problems) => {
                told.extend(problems.iter().map(ToString::to_string));
                continue;
            }
        };
        for news in certificates.refresh() {
            if let CertificateNews::Unusable(problem) = news {
                told.push(problem.to_string());
            }
        }
        told.extend(certificates.all().iter().filter_map(|one| one.complaint(now())));
    }
    Ok(told)
}

fn render(findings: &Findings) -> String {
    let Findings { kernel, missing, erofs, runtimes, certificates } = findings;
    let mut text = format!("Linux {kernel}\n");
    for Obstacle { what, remedy } in missing {
        text.push_str(&format!("missing: {what}\n  {remedy}\n"));
    }
    if missing.is_empty() {
        text.push_str("this machine has what the platform needs\n");
    }
    if !erofs {
        text.push_str("better with EROFS, without which images are unpacked file by file\n");
        text.push_str("  modprobe erofs\n");
    }
    for complaint in certificates {
        text.push_str(&format!("look at: {complaint}\n"));
    }
    for runtime in runtimes {
        text.push_str(&format!("also here: {}\n", runtime.display()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let sound = Findings {
            kernel: "6.1".to_owned(),
            missing: vec![],
            erofs: true,
            runtimes: vec!["/usr/sbin/runc".into()],
            certificates: vec![],
        };
        assert_eq!(
            render(&sound),
            "Linux 6.1\nthis machine has what the platform needs\nalso here: /usr/sbin/runc\n"
        );
        let missing = vec![Obstacle::new("nft is missing", "apt-get install nftables")];
        let certificates = vec!["the certificate for a.test has expired".to_owned()];
        let ill = Findings { missing, erofs: false, runtimes: vec![], certificates, ..sound };
        let expected = "Linux 6.1\nmissing: nft is missing\n  apt-get install nftables\nbetter with EROFS, \
                        without which images are unpacked file by file\n  modprobe erofs\nlook at: the \
                        certificate for a.test has expired\n";
        assert_eq!(render(&ill), expected);
    }
}
