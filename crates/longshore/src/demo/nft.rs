//! The one program that a bare machine lacks.

use std::process::{Command, Stdio};

use crate::failure::{Failure, Kind, OrFail};
use crate::output::say;
use crate::supervisor::find_program;

const INSTALL: &str = "apt-get install nftables";

/// Sees to it that `nft` is there: installs it where that needs no guessing, else says what to run.
pub fn ensure() -> Result<(), Failure> {
    if find_program("nft").is_some() {
        return Ok(());
    }
    let missing = "the program nft is missing, which keeps instances apart";
    let is_root = rustix::process::geteuid().is_root();
    let Some(apt_get) = find_program("apt-get").filter(|_| is_root) else {
        return Err(
            Failure::new(Kind::Unavailable, missing).hint(format!("install it as root: {INSTALL}"))
        );
    };
    say(format!("{missing}; installing it: {INSTALL}"));
    for arguments in [&["update", "-qq"][..], &["install", "-qq", "-y", "nftables"]] {
        // Data of this command is what it shows of the platform; what apt-get says is not.
        let status = Command::new(&apt_get)
            .args(["--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::from(std::io::stderr()))
            .status()
            .or_fail(Kind::Other, "cannot run apt-get")?;
        // An update that could not reach every source may still be enough for the install.
        if !status.success() && arguments[0] == "install" {
            return Err(Failure::new(Kind::Unavailable, format!("apt-get failed: {status}"))
                .hint(format!("see what it says above, then run: {INSTALL}")));
        }
    }
    match find_program("nft") {
        Some(_) => Ok(()),
        None => Err(Failure::new(Kind::Unavailable, missing).hint(INSTALL)),
    }
}
