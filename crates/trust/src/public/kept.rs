//! The certificates that are shown to users now, and how they follow their files.
//!
//! The files are looked at again and again, since what renews them changes links, replaces directories or
//! writes in place, as it likes. Connections that there are go on with what they began with. A certificate
//! that cannot be used takes the place of none: what was shown before is shown on. Rejected: a signal to reload, which
//! every renewal would have to send; notices of the kernel, which follow a file and not its name.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{CertificateFile, CertificateProblem, PublicCertificate};

/// Where certificates for users are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicFiles {
    /// One, which is shown to everyone.
    Pair {
        /// The certificates.
        chain: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Any number, each shown to who asks for one of its names: pairs of NAME.pem and NAME.key, and
    /// directories with fullchain.pem and privkey.pem, as certbot keeps them.
    Directory(PathBuf),
}

/// What changed.
#[derive(Debug)]
pub enum CertificateNews {
    /// One is shown from now on.
    Shown(Arc<PublicCertificate>),
    /// One is shown no more, for its files are gone.
    Gone(Arc<PublicCertificate>),
    /// Files cannot be used; what they held before is shown on.
    Unusable(CertificateProblem),
}

/// The certificates for users. The newest are shown to each connection that begins.
#[derive(Debug)]
pub struct PublicCertificates {
    files: PublicFiles,
    now: RwLock<Arc<Shown>>,
}

/// Whether a host is served here.
type IsServed = dyn Fn(&str) -> bool + Send + Sync;

/// The certificates for users, shown to who asks for a host that is served here and to nobody else: who could not
/// be answered is not spoken to, so that nothing of his request is read where it must not be.
pub struct ServedCertificates {
    certificates: Arc<PublicCertificates>,
    is_served: Box<IsServed>,
}

/// Where one certificate is.
type Pair = (PathBuf, PathBuf);

/// By which a change of a file is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    size: u64,
}

/// The same of a pair; none of a file that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([Option<FileStamp>; 2]);

#[derive(Debug, Default)]
struct Shown {
    pairs: BTreeMap<Pair, (Stamp, Option<Arc<PublicCertificate>>)>,
    by_name: HashMap<String, Arc<PublicCertificate>>,
    /// Whether the directory could not be read.
    is_blind: bool,
}

impl PublicCertificates {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// With all that is wrong with a pair; of a directory only when that itself cannot be read. What is
    /// wrong in it is told by the first [`Self::refresh`].
    pub fn open(files: PublicFiles) -> Result<Self, Vec<CertificateProblem>> {
        let certificates = Self { files, now: RwLock::default() };
        match &certificates.files {
            PublicFiles::Pair { chain, key } => {
                let pair = (chain.clone(), key.clone());
                // Looked at first: a change in between is seen later.
                let stamp = Stamp::of(&pair);
                let read = Arc::new(PublicCertificate::read(chain, key)?);
                certificates.replace(Shown::of([(pair, (stamp, Some(read)))].into()));
            }
            PublicFiles::Directory(path) => {
                pairs_in(path).map_err(|error| vec![unreadable(path, &error)])?;
            }
        }
        Ok(certificates)
    }

    /// Reads again what changed, and tells of that.
    pub fn refresh(&self) -> Vec<CertificateNews> {
        let before = self.shown();
        let mut news = Vec::new();
        let pairs = match &self.files {
            PublicFiles::Pair { chain, key } => vec![(chain.clone(), key.clone())],
            PublicFiles::Directory(path) => match pairs_in(path) {
                Ok(pairs) => pairs,
                Err(_) if before.is_blind => return news,
                Err(error) => {
                    news.push(CertificateNews::Unusable(unreadable(path, &error)));
                    let pairs = before.pairs.clone();
                    self.replace(Shown { is_blind: true, ..Shown::of(pairs) });
                    return news;
                }
            },
        };
        let mut after = BTreeMap::new();
        let mut is_changed = false;
        for pair in pairs {
            let known = before.pairs.get(&pair);
            let stamp = Stamp::of(&pair);
            if let Some(known) = known.filter(|(seen, _)| *seen == stamp) {
                after.insert(pair, known.clone());
                continue;
            }
            is_changed = true;
            let shown = match PublicCertificate::read(&pair.0, &pair.1) {
                Ok(certificate) => {
                    let certificate = Arc::new(certificate);
                    news.push(CertificateNews::Shown(Arc::clone(&certificate)));
                    Some(certificate)
                }
                Err(problems) => {
                    news.extend(problems.into_iter().map(CertificateNews::Unusable));
                    known.and_then(|(_, shown)| shown.clone())
                }
            };
            after.insert(pair, (stamp, shown));
        }
        let gone = before.pairs.iter().filter(|(pair, _)| !after.contains_key(*pair));
        for (_, (_, certificate)) in gone {
            is_changed = true;
            news.extend(certificate.clone().map(CertificateNews::Gone));
        }
        if is_changed || before.is_blind {
            self.replace(Shown::of(after));
        }
        news
    }

    /// Whether there is one for a host.
    pub fn is_for(&self, host: &str) -> bool {
        self.choose(Some(host)).is_some()
    }

    /// Those that are shown.
    pub fn all(&self) -> Vec<Arc<PublicCertificate>> {
        self.shown().pairs.values().filter_map(|(_, certificate)| certificate.clone()).collect()
    }

    fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, shown: Shown) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
    }

    /// The certificate for who asks for `name`, or for none.
    fn choose(&self, name: Option<&str>) -> Option<Arc<PublicCertificate>> {
        let shown = self.shown();
        if let PublicFiles::Pair { .. } = self.files {
            return shown.pairs.values().find_map(|(_, certificate)| certificate.clone());
        }
        let name = name?.to_ascii_lowercase();
        let wildcard = || format!("*.{}", name.split_once('.').map_or("", |(_, above)| above));
        shown.by_name.get(&name).or_else(|| shown.by_name.get(&wildcard())).cloned()
    }
}

impl ResolvesServerCert for PublicCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).map(|certificate| certificate.certified())
    }
}

impl ServedCertificates {
    /// These, for the hosts of which `is_served` says so when they are asked for, in lower case.
    pub fn new(
        certificates: Arc<PublicCertificates>,
        is_served: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { certificates, is_served: Box::new(is_served) }
    }
}

impl fmt::Debug for ServedCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServedCertificates").field(&self.certificates).finish()
    }
}

impl ResolvesServerCert for ServedCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name()?.to_ascii_lowercase();
        if !(self.is_served)(&host) {
            return None;
        }
        self.certificates.resolve(hello)
    }
}

impl Shown {
    fn of(pairs: BTreeMap<Pair, (Stamp, Option<Arc<PublicCertificate>>)>) -> Self {
        let mut by_name: HashMap<String, Arc<PublicCertificate>> = HashMap::new();
        for (_, certificate) in pairs.values() {
            let Some(certificate) = certificate else { continue };
            for name in certificate.names() {
                let other = by_name.get(name).map(|other| other.expires_at());
                // Of two for one name, as while one takes the place of the other, the one that is good for longer.
                if other.is_none_or(|other| other < certificate.expires_at()) {
                    by_name.insert(name.clone(), Arc::clone(certificate));
                }
            }
        }
        Self { pairs, by_name, is_blind: false }
    }
}

impl Stamp {
    fn of((chain, key): &Pair) -> Self {
        let stamp = |file: Metadata| FileStamp {
            device: file.dev(),
            inode: file.ino(),
            // Also of its rights: a key that others might read is one of use once they may not.
            changed: (file.ctime(), file.ctime_nsec()),
            size: file.size(),
        };
        Self([chain, key].map(|path| fs::metadata(path).ok().map(stamp)))
    }
}

/// The pairs of a directory. What is neither is something else, such as certbot's README.
fn pairs_in(dir: &Path) -> io::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            let pair = (path.join("fullchain.pem"), path.join("privkey.pem"));
            if pair.0.exists() {
                pairs.push(pair);
            }
        } else if path.extension().is_some_and(|extension| extension == "pem") {
            let key = path.with_extension("key");
            pairs.push((path, key));
        }
    }
    pairs.sort();
    Ok(pairs)
}

fn unreadable(path: &Path, error: &io::Error) -> CertificateProblem {
    let allowed = format!("a directory that can be read: {error}");
    CertificateProblem { file: CertificateFile::Chain, path: path.to_owned(), allowed }
}
