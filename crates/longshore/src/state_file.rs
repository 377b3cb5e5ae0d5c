//! Small files that are either whole or absent, whatever is killed when.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The bytes of randomness in a token.
const TOKEN_BYTES: usize = 24;

/// Puts `content` in place of the file at `path`: readable by its owner alone, on disk before it
/// takes its name.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory_of(path)
}

/// The content of the file at `path` without its line end, made by `make` when there is none. The
/// same file gives the same answer for ever.
pub fn ensure(path: &Path, make: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = make()?;
            replace(path, format!("{text}\n").as_bytes())?;
            Ok(text)
        }
        Err(error) => Err(error),
    }
}

/// A new token: `lsh_` and 192 random bits.
pub fn new_token() -> io::Result<String> {
    Ok(format!("lsh_{}", hex(&random::<TOKEN_BYTES>()?)))
}

/// Random bytes of the kernel.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One writer per file is assumed: the holder of the data directory's lock, or the user.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = ensure(&path, new_token).unwrap();
        assert_eq!(token.len(), 4 + 2 * TOKEN_BYTES);
        assert!(token.starts_with("lsh_"));
        assert_eq!(ensure(&path, new_token).unwrap(), token);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_ne!(new_token().unwrap(), token);
    }
}
