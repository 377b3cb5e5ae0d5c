//! Secrets at rest: sealed, with keys in a file outside of the store that holds what is sealed.
//!
//! XChaCha20-Poly1305, whose nonces are long enough to be random for ever. What is sealed belongs to its
//! context, such as the key of its record: moved to another one it does not open. A file holds several
//! keys while they are changed: the newest seals, all open.
//!
//! The crate knows no store and no network. Test: `cargo nextest run -p longshore-secrets`.

#![deny(missing_docs)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use longshore_types::SecretValue;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// A secret as it may lie in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The key that opens it.
    key: String,
    /// Nonce and ciphertext, in base 64.
    sealed: String,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the secret keys in {}", path.display())]
pub struct KeyringError {
    /// What was tried.
    doing: &'static str,
    /// The file.
    path: PathBuf,
    /// Why not.
    #[source]
    source: io::Error,
}

/// Why something that is sealed does not open. What it was is in neither.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Its key is not in the file.
    #[error("it is sealed with the key {0}, which is not in the key file")]
    NoKey(String),
    /// It was changed, or belongs elsewhere.
    #[error("it was changed since it was sealed, or belongs to another name")]
    Changed,
}

/// The keys of one file.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    /// Never empty; the newest last.
    keys: RwLock<Vec<Key>>,
}

#[derive(Clone)]
struct Key {
    id: String,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    id: String,
    /// In base 64.
    key: Zeroizing<String>,
}

impl Key {
    fn new() -> io::Result<Self> {
        let id: [u8; 4] = random()?;
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, bytes: Zeroizing::new(random()?) })
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.bytes).into())
    }
}

impl Keyring {
    /// The keys of a file, which is made with one new key when it is not there.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, understood or made.
    pub fn open(path: &Path) -> Result<Self, KeyringError> {
        let failed = |doing: &'static str| {
            move |source| KeyringError { doing, path: path.to_owned(), source }
        };
        let keys = match fs::read(path) {
            Ok(bytes) => read(&Zeroizing::new(bytes)).map_err(failed("understand"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = vec![Key::new().map_err(failed("make"))?];
                write(path, &keys).map_err(failed("make"))?;
                keys
            }
            Err(error) => return Err(failed("read")(error)),
        };
        Ok(Self { path: path.to_owned(), keys: RwLock::new(keys) })
    }

    fn keys(&self) -> Vec<Key> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Seals a value for a context.
    ///
    /// # Errors
    ///
    /// When the kernel gives no random bytes.
    ///
    /// # Panics
    ///
    /// Never for what fits in memory: the cipher takes 256 GiB.
    pub fn seal(&self, context: &str, value: &SecretValue) -> Result<Sealed, KeyringError> {
        let failed = |source| KeyringError { doing: "use", path: self.path.clone(), source };
        let nonce: [u8; NONCE_BYTES] = random().map_err(failed)?;
        let keys = self.keys();
        let key = keys.last().expect("a keyring is never empty");
        let payload = Payload { msg: value.bytes(), aad: context.as_bytes() };
        let ciphertext = key.cipher().encrypt(&XNonce::from(nonce), payload);
        let ciphertext = ciphertext.expect("a secret is short enough for the cipher");
        let sealed = STANDARD.encode([&nonce[..], &ciphertext].concat());
        Ok(Sealed { key: key.id.clone(), sealed })
    }

    /// Opens what was sealed for a context.
    ///
    /// # Errors
    ///
    /// When its key is not here, or it is not what was sealed for this context.
    pub fn unseal(&self, context: &str, sealed: &Sealed) -> Result<SecretValue, UnsealError> {
        let keys = self.keys();
        let key = keys.iter().find(|key| key.id == sealed.key);
        let key = key.ok_or_else(|| UnsealError::NoKey(sealed.key.clone()))?;
        let bytes = STANDARD.decode(&sealed.sealed).map_err(|_| UnsealError::Changed)?;
        let (nonce, msg) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(UnsealError::Changed)?;
        let payload = Payload { msg, aad: context.as_bytes() };
        let opened = key.cipher().decrypt(&XNonce::from(*nonce), payload);
        opened.map(SecretValue::new).map_err(|_| UnsealError::Changed)
    }

    /// Whether something is sealed with the newest key.
    pub fn is_newest(&self, sealed: &Sealed) -> bool {
        self.keys().last().is_some_and(|key| key.id == sealed.key)
    }

    /// Adds a key, which seals from now on. It is on disk before anything is sealed with it.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; then nothing has changed.
    pub fn add_key(&self) -> Result<(), KeyringError> {
        self.change(|keys| {
            keys.push(Key::new()?);
            Ok(())
        })
    }

    /// Forgets all keys but the newest. To be called once nothing is sealed with the others.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; then nothing has changed.
    pub fn forget_old_keys(&self) -> Result<(), KeyringError> {
        self.change(|keys| {
            keys.drain(..keys.len() - 1);
            Ok(())
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Key>) -> io::Result<()>,
    ) -> Result<(), KeyringError> {
        let failed = |source| KeyringError { doing: "change", path: self.path.clone(), source };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = keys.clone();
        change(&mut changed).map_err(failed)?;
        write(&self.path, &changed).map_err(failed)?;
        *keys = changed;
        Ok(())
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read(bytes: &[u8]) -> io::Result<Vec<Key>> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    // The error of the parser would quote the file.
    let stored: Stored = serde_json::from_slice(bytes)
        .map_err(|error| wrong(format!("line {}, column {}", error.line(), error.column())))?;
    if stored.v != 1 || stored.keys.is_empty() {
        return Err(wrong(format!("version {} with {} keys", stored.v, stored.keys.len())));
    }
    let key = |StoredKey { id, key }: StoredKey| {
        let bytes = Zeroizing::new(STANDARD.decode(key.as_bytes()).unwrap_or_default());
        let bytes = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
        let bytes = bytes.map_err(|_| wrong(format!("the key {id} is not {KEY_BYTES} bytes")))?;
        Ok(Key { id, bytes: Zeroizing::new(bytes) })
    };
    stored.keys.into_iter().map(key).collect()
}

/// Replaces the file, which its owner alone may read; on disk before it takes its name.
fn write(path: &Path, keys: &[Key]) -> io::Result<()> {
    let stored = keys.iter().map(|key| StoredKey {
        id: key.id.clone(),
        key: Zeroizing::new(STANDARD.encode(*key.bytes)),
    });
    let stored = Stored { v: 1, keys: stored.collect() };
    let text = Zeroizing::new(serde_json::to_vec(&stored).map_err(io::Error::other)?);
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn secret(text: &str) -> SecretValue {
        SecretValue::new(text.as_bytes().to_vec())
    }

    #[test]
    fn what_is_sealed_opens_where_it_belongs_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let keyring = Keyring::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = keyring.seal("a", &secret("tell nobody")).unwrap();
        assert_ne!(sealed, keyring.seal("a", &secret("tell nobody")).unwrap());
        assert!(!format!("{sealed:?} {keyring:?}").contains("tell nobody"));
        assert_eq!(keyring.unseal("a", &sealed).unwrap(), secret("tell nobody"));
        assert_eq!(keyring.unseal("b", &sealed), Err(UnsealError::Changed));
        let mut bytes = STANDARD.decode(&sealed.sealed).unwrap();
        for idx in 0..bytes.len() {
            bytes[idx] ^= 1;
            let changed = Sealed { sealed: STANDARD.encode(&bytes), ..sealed.clone() };
            assert_eq!(keyring.unseal("a", &changed), Err(UnsealError::Changed), "byte {idx}");
            bytes[idx] ^= 1;
        }
        for bad in ["", "AAAA", "no base 64 at all!"] {
            let changed = Sealed { sealed: bad.to_owned(), ..sealed.clone() };
            assert_eq!(keyring.unseal("a", &changed), Err(UnsealError::Changed));
        }
        let other = Keyring::open(&dir.path().join("other.json")).unwrap();
        assert_eq!(other.unseal("a", &sealed), Err(UnsealError::NoKey(sealed.key.clone())));
        let again = Keyring::open(&path).unwrap();
        assert_eq!(again.unseal("a", &sealed).unwrap(), secret("tell nobody"));
    }

    #[test]
    fn keys_change_in_two_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let keyring = Keyring::open(&path).unwrap();
        let old = keyring.seal("a", &secret("x")).unwrap();
        keyring.add_key().unwrap();
        assert!(!keyring.is_newest(&old));
        assert_eq!(Keyring::open(&path).unwrap().unseal("a", &old).unwrap(), secret("x"));
        let new = keyring.seal("a", &secret("x")).unwrap();
        assert!(keyring.is_newest(&new));
        keyring.forget_old_keys().unwrap();
        for keyring in [&keyring, &Keyring::open(&path).unwrap()] {
            assert_eq!(keyring.unseal("a", &new).unwrap(), secret("x"));
            assert!(matches!(keyring.unseal("a", &old), Err(UnsealError::NoKey(_))));
        }
    }

    #[test]
    fn a_file_that_is_no_key_file_is_refused_without_being_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        for text in [
            "",
            "hidden",
            r#"{"v":2,"keys":[]}"#,
            r#"{"v":1,"keys":[]}"#,
            r#"{"v":1,"keys":[{"id":"a","key":"aGlkZGVu"}]}"#,
        ] {
            fs::write(&path, text).unwrap();
            let error = Keyring::open(&path).unwrap_err();
            let said = format!("{error}: {}", error.source);
            assert!(said.starts_with("cannot understand") && !said.contains("hidden"), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is left as it is");
        }
    }
}
