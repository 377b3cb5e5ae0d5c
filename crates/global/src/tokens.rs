//! Tokens: random texts of which only hashes are kept.

use std::io::Read;

use longshore_link::now;
use longshore_store::{Store, Transaction};
use longshore_types::token::{RegistryAction, RegistryRight, Rights};

use crate::GlobalError;
use crate::hash::{hex, sha256};
use crate::records::{Key, TokenRecord, encode};

/// Marks a text as a token of ours, for people and for secret scanners.
const PREFIX: &str = "lsh_";

/// The name under which the token of `admin-token` is kept.
pub const ADMIN: &str = "admin";
/// The name under which the token of the platform's own roles is kept.
pub const SYSTEM: &str = "system";

/// The hexadecimal SHA-256 of a token's text. A token has 256 random bits, so a plain hash is as
/// good as a slow one.
pub fn hash(token: &str) -> String {
    sha256(token)
}

/// Makes the text of a new token.
pub fn generate() -> std::io::Result<String> {
    Ok(format!("{PREFIX}{}", random_text()?))
}

/// 256 random bits in hexadecimal digits.
pub fn random_text() -> std::io::Result<String> {
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(hex(&random))
}

/// The right to have any image.
pub fn pull_everything() -> RegistryRight {
    RegistryRight { repositories: "*".to_owned(), actions: vec![RegistryAction::Pull] }
}

/// Stores the two tokens that every platform has, with the texts of their files.
pub async fn ensure_built_in(
    store: &dyn Store,
    admin: &str,
    system: &str,
) -> Result<(), GlobalError> {
    let wanted = [
        (ADMIN, admin, Rights { admin: true, ..Rights::default() }),
        (SYSTEM, system, Rights { registry: vec![pull_everything()], ..Rights::default() }),
    ];
    for (name, text, rights) in wanted {
        let name = name.parse().expect("the names of built-in tokens follow the grammar");
        let key = Key::Token(name).to_string();
        let record = TokenRecord { hash: hash(text), rights, created_at: now(), built_in: true };
        if let Some(stored) = store.get(&key).await.map_err(GlobalError::Store)? {
            let stored: TokenRecord = stored.decode().map_err(GlobalError::Record)?;
            // A start writes nothing new, so that a full disk does not prevent it.
            if (TokenRecord { created_at: record.created_at, ..stored }) == record {
                continue;
            }
        }
        let put = Transaction::new().put(key, encode(&record));
        store.commit(put).await.map_err(GlobalError::Store)?;
    }
    Ok(())
}
