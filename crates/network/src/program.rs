//! Finding and running the system's own programs.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A healthy `nft` or `iptables` answers in milliseconds; one that waits this long for a lock waits
/// for something broken.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Where administration programs live, for those whose `PATH` lacks it.
const ADMINISTRATION_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Looks for a program in `PATH` and where administration programs live.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(name, std::env::split_paths(&path).chain(ADMINISTRATION_DIRS.map(PathBuf::from)))
}

fn find_in(name: &str, dirs: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.into_iter().map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

/// Runs a program to its end with `input` on its standard input.
pub(crate) async fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    input: &str,
) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("standard input was asked to be a pipe");
    let talk = async move {
        // A program that ends without reading says why in its exit status.
        match stdin.write_all(input.as_bytes()).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
        child.wait_with_output().await
    };
    tokio::time::timeout(TIME_LIMIT, talk)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end in time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_it_is_or_not_at_all() {
        let dirs = || ["/nonexistent", "/bin", "/usr/bin"].map(PathBuf::from);
        assert_eq!(find_in("sh", dirs()), Some("/bin/sh".into()));
        assert_eq!(find_in("no-such-program", dirs()), None);
    }
}
