//! Certificates for users, made by `openssl` as an operator would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::image::checked;

/// An authority in a directory of its own.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes one in a directory, which is made too.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("trusted"))?;
        let authority = Self { dir: dir.to_owned() };
        checked(authority.request("ca", &["/CN=an authority of a test"]).arg("-days").arg("30"))?;
        // The name under which clients of registries look for it, in a directory with nothing else.
        fs::rename(dir.join("ca.pem"), authority.ca())?;
        Ok(authority)
    }

    /// Its certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("trusted/ca.crt")
    }

    /// Certifies names such as `DNS:a.test` and `IP:127.0.0.1`: STEM.pem and STEM.key in `to`.
    pub fn issue(&self, to: &Path, stem: &str, names: &str) -> Result<()> {
        let names = format!("subjectAltName={names}");
        let mut request = self.request(stem, &["/CN=a server of a test"]);
        request
            .args(["-days", "30", "-addext", &names, "-addext", "basicConstraints=CA:FALSE"])
            .arg("-CA")
            .arg(self.ca())
            .arg("-CAkey")
            .arg(self.dir.join("ca.key"));
        checked(&mut request)?;
        for end in ["key", "pem"] {
            let name = format!("{stem}.{end}");
            fs::copy(self.dir.join(&name), to.join(&name))?;
        }
        Ok(())
    }

    fn request(&self, stem: &str, subject: &[&str]) -> Command {
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .arg("-subj")
            .args(subject)
            .arg("-keyout")
            .arg(self.dir.join(format!("{stem}.key")))
            .arg("-out")
            .arg(self.dir.join(format!("{stem}.pem")));
        openssl
    }
}
