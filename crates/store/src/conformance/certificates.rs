//! Certificates for tests: of one who vouches, of a server on loopback and of a client.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::ServerTls;
use crate::etcd::EtcdTlsFiles;

/// Files of certificates in one directory, which vouch for each other and for nobody else.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// New ones, in a directory that is made.
    ///
    /// # Errors
    ///
    /// When they cannot be made.
    pub fn make(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let this = Self { dir: dir.to_owned() };
        let failed = io::Error::other::<rcgen::Error>;
        let ca_key = KeyPair::generate().map_err(failed)?;
        let mut ca = CertificateParams::new(Vec::new()).map_err(failed)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        this.write("ca.pem", &ca.self_signed(&ca_key).map_err(failed)?.pem())?;
        let issuer = Issuer::new(ca, ca_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().map_err(failed)?;
            let names = vec!["127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).map_err(failed)?;
            // An etcd calls itself with the certificate of its server.
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
            this.write(&format!("{name}.pem"), &certificate.pem())?;
            this.write(&format!("{name}-key.pem"), &key.serialize_pem())?;
        }
        Ok(this)
    }

    fn write(&self, name: &str, pem: &str) -> io::Result<()> {
        let path = self.path(name);
        std::fs::write(&path, pem)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
    }

    /// A file: `ca.pem`, or `server` or `client` with `.pem` or `-key.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Those of a server.
    pub fn of_server(&self) -> ServerTls {
        let path = |name| self.path(name);
        ServerTls { ca: path("ca.pem"), cert: path("server.pem"), key: path("server-key.pem") }
    }

    /// Those of a client.
    pub fn of_client(&self) -> EtcdTlsFiles {
        let path = |name| Some(self.path(name));
        EtcdTlsFiles { ca: path("ca.pem"), cert: path("client.pem"), key: path("client-key.pem") }
    }
}
