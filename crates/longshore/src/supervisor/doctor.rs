//! `longshore doctor`

use std::path::PathBuf;

use serde::Serialize;

use super::preflight::{Facts, Obstacle, find_program};
use crate::failure::{Failure, Kind};
use crate::output::{Format, Output};

/// Say what this machine lacks to run the platform, and what to do about it
///
/// It changes nothing. `up` looks at the same, and at the ports and directories that it takes. Ends with
/// code 1 when something is missing.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorOptions {
    /// The directory that everything would be kept in
    #[arg(long, value_name = "DIR", default_value = "/var/lib/longshore")]
    data_dir: PathBuf,
    /// The directory for sockets and mounts
    #[arg(long, value_name = "DIR", default_value = "/run/longshore")]
    run_dir: PathBuf,
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
    /// Runtimes that apps may ask for, beside the one that is built in.
    runtimes: Vec<PathBuf>,
}

/// Looks, and tells.
pub fn run(options: &DoctorOptions) -> Result<(), Failure> {
    let facts = Facts::observe(&options.data_dir, &options.run_dir);
    let runtimes = ["runc", "crun", "runsc"].into_iter().filter_map(find_program).collect();
    let findings = Findings { missing: facts.obstacles(), kernel: facts.kernel, runtimes };
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

fn render(findings: &Findings) -> String {
    let Findings { kernel, missing, runtimes } = findings;
    let mut text = format!("Linux {kernel}\n");
    for Obstacle { what, remedy } in missing {
        text.push_str(&format!("missing: {what}\n  {remedy}\n"));
    }
    if missing.is_empty() {
        text.push_str("this machine has what the platform needs\n");
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
            runtimes: vec!["/usr/sbin/runc".into()],
        };
        assert_eq!(
            render(&sound),
            "Linux 6.1\nthis machine has what the platform needs\nalso here: /usr/sbin/runc\n"
        );
        let missing = vec![Obstacle::new("nft is missing", "apt-get install nftables")];
        let ill = Findings { missing, runtimes: vec![], ..sound };
        let expected = "Linux 6.1\nmissing: nft is missing\n  apt-get install nftables\n";
        assert_eq!(render(&ill), expected);
    }
}
