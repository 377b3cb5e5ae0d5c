//! What a world that was killed left behind.
//!
//! The supervisors of its machines notice the end of the world and end in order. When they were killed as
//! well, containers go on, as they should. So each machine whose directory is still there is started
//! once more, alone in the network that it had, and ended with all its instances: nobody but the product
//! itself knows all that it made.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use longshore_world::{Machine, Subnet};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::machines::{END, on_machine, open_log};
use super::plan::{flagged, in_dir};
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::{Bequest, LifeLine};
use crate::output::say;
use crate::supervisor::{ask_to_end, is_mount_below};

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a machine may take until its node minds what it is told.
const START: Duration = Duration::from_secs(60);

/// Ends what runs of an earlier world and removes its directories.
pub async fn sweep(dir: &Path, exe: &Path) -> Result<(), Failure> {
    let doing = || format!("cannot clean {}", dir.display());
    let left = machine_dirs(dir).or_fail(Kind::Other, doing())?;
    if left.is_empty() {
        return Ok(());
    }
    say("Cleaning up after a world that was killed…");
    let life_line = LifeLine::new().or_fail(Kind::Other, doing())?;
    let subnet = Subnet::take().or_fail(Kind::Other, doing())?;
    let ends = left.iter().enumerate().map(|(idx, dir)| {
        let (subnet, life_line) = (&subnet, &life_line);
        async move {
            let network = match network_left(dir)? {
                Some(network) => network,
                None => {
                    let machine = Machine::start("a machine that was left", subnet.address(idx));
                    machine.map_err(io::Error::other)?.network().try_clone_to_owned()?
                }
            };
            end_machine(dir, exe, &network, life_line).await
        }
    });
    for outcome in futures_util::future::join_all(ends).await {
        outcome.or_fail(Kind::Other, doing())?;
    }
    left.iter().try_for_each(|dir| remove(dir))
}

/// Removes the directory of a world, last what it is known by: what was cut short is begun anew.
pub fn remove_world(dir: &Path) -> Result<(), Failure> {
    let machines = machine_dirs(dir).or_fail(Kind::Other, format!("cannot read {}", dir.display()));
    machines?.iter().try_for_each(|machine| remove(machine))?;
    remove(dir)
}

/// Removes a directory in which nothing is mounted.
fn remove(dir: &Path) -> Result<(), Failure> {
    let doing = || format!("cannot remove {}", dir.display());
    if is_mount_below(dir).or_fail(Kind::Other, doing())? {
        let message = format!("something is still mounted below {}", dir.display());
        return Err(Failure::new(Kind::Other, message)
            .hint("its log says why; the next start tries again to end what runs there"));
    }
    fs::remove_dir_all(dir).or_fail(Kind::Other, doing())
}

/// The directories of machines.
fn machine_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// How a machine with this directory is started alone. Nothing when nothing ever ran there.
fn command_line(dir: &Path) -> Option<Vec<String>> {
    let name = dir.file_name()?.to_str()?.to_owned();
    let has = |part: &str| dir.join("data").join(part).exists();
    let any = || "127.0.0.1:0".to_owned();
    // Nobody calls it: what it says of how it is reached may be anything.
    let nowhere = || "127.0.0.1:1".to_owned();
    let (verbs, flags): (&[&str], Vec<(&str, String)>) = if has("global") {
        let flags = vec![
            ("api-listen", any()),
            ("registry-listen", any()),
            ("ingress-listen", any()),
            ("metrics-listen", String::new()),
            ("location", name.clone()),
            ("node", name),
        ];
        (&["up", "--no-context"], flags)
    } else if has("location") {
        let flags = vec![
            ("ingress-listen", any()),
            ("nodes-listen", any()),
            ("nodes-advertise", nowhere()),
            ("peers-listen", any()),
            ("peers-advertise", nowhere()),
        ];
        (&["location", "start"], flags)
    } else if has("node") {
        (&["node", "start"], vec![("gate-listen", any()), ("gate-advertise", nowhere())])
    } else {
        return None;
    };
    let verbs = verbs.iter().map(|verb| (*verb).to_owned());
    Some(verbs.chain(flagged(flags)).chain(in_dir(dir)).collect())
}

/// The network of a machine with this directory: its instances hang on it, and their shims live in it.
fn network_left(dir: &Path) -> io::Result<Option<OwnedFd>> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.path();
        let command_line = fs::read(entry.join("cmdline")).unwrap_or_default();
        let mut arguments = command_line.split(|byte| *byte == 0).map(OsStr::from_bytes).skip(1);
        let is_shim = arguments.next().is_some_and(|verb| verb == "shim");
        if is_shim && arguments.any(|argument| Path::new(argument).starts_with(dir)) {
            match fs::File::open(entry.join("ns/net")) {
                Ok(network) => return Ok(Some(network.into())),
                // It ended meanwhile; another one may be there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Starts a machine and ends it with all that it runs.
async fn end_machine(
    dir: &Path,
    exe: &Path,
    network: &OwnedFd,
    life_line: &LifeLine,
) -> io::Result<()> {
    let Some(line) = command_line(dir) else { return Ok(()) };
    let mut command = Command::new(exe);
    command.args(line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(open_log(dir)?);
    command.process_group(0);
    Bequest { life_line, hold: None, sockets: Vec::new() }.give(&mut command);
    on_machine(&mut command, network.as_fd());
    let mut supervisor = command.spawn()?;
    let deadline = Instant::now() + START;
    // One that ends by itself has never joined, so that nothing ever ran there.
    while supervisor.try_wait()?.is_none() && !has_node_that_listens(&supervisor)? {
        if Instant::now() > deadline {
            break;
        }
        sleep(LOOK_AGAIN).await;
    }
    if supervisor.try_wait()?.is_none() {
        ask_to_end(&supervisor);
        if timeout(END, supervisor.wait()).await.is_err() {
            supervisor.kill().await?;
        }
    }
    Ok(())
}

/// Whether the supervisor has a node that minds signals: from then on it ends its instances when it is
/// told to end, and not before.
fn has_node_that_listens(supervisor: &Child) -> io::Result<bool> {
    let Some(supervisor) = supervisor.id() else { return Ok(false) };
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.path();
        let read = |file: &str| fs::read_to_string(entry.join(file)).unwrap_or_default();
        let command_line = read("cmdline");
        if command_line.split('\0').nth(1) != Some("node") {
            continue;
        }
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let is_child = field("PPid:").is_some_and(|parent| parent == supervisor.to_string());
        if is_child && field("SigCgt:").is_some_and(|mask| catches_terminate(&mask)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether SIGTERM is in a mask of signals as the kernel writes it.
fn catches_terminate(mask: &str) -> bool {
    let terminate = rustix::process::Signal::TERM.as_raw().cast_unsigned();
    u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & (1 << (terminate - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_machine_that_was_left_is_started_as_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for (name, parts, verb) in [
            ("ams", &["global", "location", "node"][..], Some("up")),
            ("sin", &["location", "node"], Some("location")),
            ("sin-2", &["node"], Some("node")),
            ("tyo", &[], None),
        ] {
            let dir = dir.path().join(name);
            parts.iter().for_each(|part| fs::create_dir_all(dir.join("data").join(part)).unwrap());
            let line = command_line(&dir);
            assert_eq!(line.as_ref().map(|line| line[0].as_str()), verb, "{name}");
            if let Some(line) = line {
                let line: Vec<_> = std::iter::once("longshore".to_owned()).chain(line).collect();
                Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            }
        }
        assert_eq!(machine_dirs(dir.path()).unwrap().len(), 3);
    }

    #[test]
    fn a_mask_says_whether_an_end_is_minded() {
        assert!(catches_terminate("0000000000004002"));
        assert!(!catches_terminate("0000000000000002"));
        assert!(!catches_terminate("?"));
    }
}
