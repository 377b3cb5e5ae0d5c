//! Reading back from outside whether a runtime has put the protections in place.
//!
//! The embedded runtime's last step reads them back from inside, before the program runs. Another
//! program is not ours to look into, so its container's first process is looked at: a start at which
//! anything is missing is refused, and the container ended. crun installs the filter when `start` has
//! returned already, so this waits for it; a process that runs its program without one shows that by
//! never getting it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::particulars::First;
use crate::oci;

/// How long the last steps before a program may take.
const DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Waits until the protections are in force; otherwise says which is not.
pub(super) fn verify(pid: Pid, first: First, effective: u64) -> Result<(), String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let path = format!("/proc/{}/status", pid.as_raw_nonzero());
        let status = fs::read_to_string(path)
            .map_err(|error| format!("reading the protections: {error}"))?;
        match missing(&status, first, effective) {
            None => return Ok(()),
            Some(what) if has_ended(&status) || Instant::now() > deadline => {
                return Err(format!("the runtime did not put the protection {what} in force"));
            }
            Some(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.strip_prefix(':')).unwrap_or_default().trim()
}

fn has_ended(status: &str) -> bool {
    field(status, "State").starts_with('Z')
}

/// The first protection that a process lacks. A kernel of its own keeps those of its processes
/// itself; what counts is that it is filtered.
fn missing(status: &str, first: First, effective: u64) -> Option<String> {
    let filter = ("Seccomp", "2".to_owned());
    let set = |bits: u64| format!("{bits:016x}");
    let expected = match first {
        First::Sandbox => vec![filter],
        First::Program => vec![
            filter,
            ("NoNewPrivs", "1".to_owned()),
            ("CapInh", set(0)),
            ("CapPrm", set(effective)),
            ("CapEff", set(effective)),
            ("CapBnd", set(oci::capability_bits())),
            ("CapAmb", set(0)),
        ],
    };
    let differs = |(name, value): &(&str, String)| field(status, name) != value.as_str();
    expected
        .iter()
        .find(|pair| differs(pair))
        .map(|(name, value)| format!("{name} = {value} (it is {:?})", field(status, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(filter: u32, effective: u64) -> String {
        let bounding = oci::capability_bits();
        format!(
            "Name:\tsh\nState:\tS (sleeping)\nCapInh:\t{0:016x}\nCapPrm:\t{effective:016x}\n\
             CapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\nCapAmb:\t{0:016x}\n\
             NoNewPrivs:\t1\nSeccomp:\t{filter}\nSeccomp_filters:\t1\n",
            0
        )
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = oci::capability_bits();
        assert_eq!(missing(&status(2, all), First::Program, all), None);
        assert_eq!(missing(&status(2, 0), First::Program, 0), None);
        let unfiltered = missing(&status(0, all), First::Program, all).unwrap();
        assert!(unfiltered.starts_with("Seccomp = 2 (it is \"0\")"), "{unfiltered}");
        let too_much = missing(&status(2, u64::MAX), First::Program, all).unwrap();
        assert!(too_much.starts_with("CapPrm"), "{too_much}");
        assert_eq!(missing(&status(2, u64::MAX), First::Sandbox, 0), None);
        assert!(missing("", First::Sandbox, 0).is_some());
    }

    #[test]
    fn a_process_without_them_is_refused_once_it_has_ended() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let refused = verify(pid, First::Program, oci::capability_bits()).unwrap_err();
        assert!(refused.contains("Seccomp"), "{refused}");
        child.wait().unwrap();
    }
}
