//! Reading back whether a runtime has put the protections in place.
//!
//! The embedded runtime's last step reads its own back, before the program runs. Another program is
//! not ours to look into, so its container's first process is looked at: a start at which
//! anything is missing is refused, and the container ended. What is in force when the container is
//! made is looked at then, for a program that runs may give up rights of its own. crun and runsc
//! install the filter only after `start`, which nobody can take back, so that is waited for.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::oci;

/// How long the last steps before a program may take.
const DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What a line of `/proc/<pid>/status` says when a protection is in force.
pub(super) type Expected = (&'static str, String);

/// The system call filter.
pub(super) fn filter() -> Expected {
    ("Seccomp", "2".to_owned())
}

/// The rights of a process that has no others than these capabilities.
pub(super) fn rights(effective: u64) -> Vec<Expected> {
    let set = |bits: u64| format!("{bits:016x}");
    vec![
        ("NoNewPrivs", "1".to_owned()),
        ("CapInh", set(0)),
        ("CapPrm", set(effective)),
        ("CapEff", set(effective)),
        ("CapBnd", set(oci::capability_bits())),
        ("CapAmb", set(0)),
    ]
}

/// Waits until the protections of a process are in force; otherwise says which is not.
pub(super) fn verify(pid: Pid, expected: &[Expected]) -> Result<(), String> {
    let deadline = Instant::now() + DEADLINE;
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    loop {
        let status = read(&path)?;
        match missing(&status, expected) {
            Some(what) if has_ended(&status) || Instant::now() > deadline => {
                return Err(refused(&what));
            }
            Some(_) => thread::sleep(LOOK_EVERY),
            None => return Ok(()),
        }
    }
}

/// Whether the protections of this process are in force; otherwise says which is not.
pub(super) fn check_own(expected: &[Expected]) -> Result<(), String> {
    missing(&read("/proc/self/status")?, expected).map_or(Ok(()), |what| Err(refused(&what)))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("reading the protections: {error}"))
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.strip_prefix(':')).unwrap_or_default().trim()
}

fn has_ended(status: &str) -> bool {
    field(status, "State").starts_with('Z')
}

/// The first protection that a process lacks.
fn missing(status: &str, expected: &[Expected]) -> Option<String> {
    let lacks = expected.iter().find(|(name, value)| field(status, name) != value);
    lacks.map(|(name, value)| format!("{name} = {value} (it is {:?})", field(status, name)))
}

fn refused(missing: &str) -> String {
    format!("the runtime did not put the protection {missing} in force")
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
        assert_eq!(missing(&status(2, all), &rights(all)), None);
        assert_eq!(missing(&status(2, 0), &rights(0)), None);
        assert_eq!(missing(&status(2, 0), &[filter()]), None);
        let unfiltered = missing(&status(0, all), &[filter()]).unwrap();
        assert!(unfiltered.starts_with("Seccomp = 2 (it is \"0\")"), "{unfiltered}");
        let too_much = missing(&status(2, u64::MAX), &rights(all)).unwrap();
        assert!(too_much.starts_with("CapPrm"), "{too_much}");
        assert!(missing("", &[filter()]).is_some());
    }

    #[test]
    fn a_process_without_them_is_refused_once_it_has_ended() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let refused = verify(pid, &[filter()]).unwrap_err();
        assert!(refused.contains("Seccomp"), "{refused}");
        child.wait().unwrap();
    }
}
