//! The certificates for an etcd, as flags and in the config of `up`.

use std::path::PathBuf;

use longshore_store::{EtcdAddress, EtcdTls, EtcdTlsFile, EtcdTlsFiles, EtcdTlsProblem};
use longshore_types::ManifestProblem;

use crate::failure::Failure;

/// The flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StoreTlsOptions {
    /// The certificates, in PEM, of those who vouch for an etcd at https://
    #[arg(long, value_name = "FILE")]
    store_ca: Option<PathBuf>,
    /// The certificate that is shown to it, in PEM
    #[arg(long, value_name = "FILE")]
    store_cert: Option<PathBuf>,
    /// The key of that, in PEM; a file for its owner alone
    #[arg(long, value_name = "FILE")]
    store_key: Option<PathBuf>,
}

impl StoreTlsOptions {
    /// Reads the files for an etcd, if that is one at https.
    pub fn load(self, address: Option<&EtcdAddress>) -> Result<Option<EtcdTls>, Failure> {
        let Self { store_ca: ca, store_cert: cert, store_key: key } = self;
        let problems = match (EtcdTlsFiles { ca, cert, key }).load(address) {
            Ok(tls) => return Ok(tls),
            Err(problems) => problems,
        };
        Err(Failure::of_flags(problems.into_iter().map(shown)))
    }
}

/// The name of the key of the config, which is that of the flag with other dashes.
pub fn key_of(file: EtcdTlsFile) -> &'static str {
    match file {
        EtcdTlsFile::Ca => "store_ca",
        EtcdTlsFile::Cert => "store_cert",
        EtcdTlsFile::Key => "store_key",
    }
}

/// A problem as those of a config are shown.
pub fn shown(problem: EtcdTlsProblem) -> ManifestProblem {
    let value = problem.path.map_or_else(|| "(none)".to_owned(), |path| path.display().to_string());
    let (field, allowed) = (key_of(problem.file).to_owned(), problem.allowed);
    ManifestProblem { field, value, allowed }
}
