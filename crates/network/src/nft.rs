//! The `nft` program: one call, one transaction.
//!
//! Netlink crates for nf_tables are copyleft or need C libraries. The program is small, in every
//! distribution, and takes a whole transaction on its standard input, which is all that is needed;
//! its 10 ms are spent only when a table or an egress list changes, never for a plain start.

use std::io;
use std::path::PathBuf;

use crate::program;

/// Packet rules could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// The program is not there.
    #[error("the program `nft` is not installed; on Debian and Ubuntu: apt-get install nftables")]
    Missing,
    /// The program could not be run to its end.
    #[error("run {program}", program = program.display())]
    Run {
        /// The program's path.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel or the program refused; nothing was changed.
    #[error("nft refused to {doing}: {complaint}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What the program said.
        complaint: String,
    },
}

#[derive(Debug)]
pub(crate) struct Nft {
    program: PathBuf,
}

impl Nft {
    pub(crate) fn find() -> Result<Self, NftError> {
        program::find("nft").map(|program| Self { program }).ok_or(NftError::Missing)
    }

    /// Carries out `script` as one transaction: all of it or nothing.
    pub(crate) async fn apply(&self, doing: &'static str, script: &str) -> Result<(), NftError> {
        self.run(doing, &["-f", "-"], script).await.map(drop)
    }

    /// The table as text without counters, or nothing when it does not exist.
    pub(crate) async fn list_table(&self, table: &str) -> Result<Option<String>, NftError> {
        let listed = self.run("list a table", &["-s", "list", "table", "inet", table], "").await;
        match listed {
            Ok(text) => Ok(Some(text)),
            Err(NftError::Refused { complaint, .. }) if complaint.contains(NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn run(
        &self,
        doing: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, NftError> {
        let output = program::run(&self.program, arguments, input)
            .await
            .map_err(|source| NftError::Run { program: self.program.clone(), source })?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(NftError::Refused { doing, complaint });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// How the C library words ENOENT in the locale that the program is run in.
const NOT_FOUND: &str = "No such file or directory";
