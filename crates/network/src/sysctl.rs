//! Settings below `/proc/sys`. The kernel shows each thread those of its own network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A kernel setting could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("set {path} to {value}", path = path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// Sets `key`, a path below `/proc/sys`, unless it has the value: where `/proc/sys` is read-only, an
/// administrator's own setting is enough.
pub(crate) fn ensure(key: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = Path::new("/proc/sys").join(key);
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| SysctlError { path, value, source })
}

/// Turns IPv6 off for `link` (or `all`, `default`). A kernel without IPv6 has nothing to turn off.
pub(crate) fn ensure_no_ipv6(link: &str) -> Result<(), SysctlError> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    ensure(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1")
}
