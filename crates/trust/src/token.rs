//! What lets a machine join: a text that is good once.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longshore_types::LocationName;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Fingerprint;

/// Marks a text as a join token of ours, for people and for secret scanners.
const PREFIX: &str = "lsj_";

/// What joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinRole {
    /// A machine of a location.
    #[default]
    Node,
    /// A location itself, with its first machine.
    Location,
}

/// A join token: as what, where, and by which secret. It is shown to who is asked to let its bearer in only
/// once that one has shown a certificate that goes back to the right root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// As what its bearer joins.
    pub role: JoinRole,
    /// Where.
    pub location: LocationName,
    /// `host:port` of who lets it in.
    pub address: String,
    /// The root of the world.
    pub root: Fingerprint,
    /// 256 random bits, in hexadecimal digits.
    pub secret: Zeroizing<String>,
    /// True when its bearer takes the place of the location that there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovers: bool,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({:?} of {} at {})", self.role, self.location, self.address)
    }
}

impl JoinToken {
    /// The token as text.
    pub fn text(&self) -> Zeroizing<String> {
        let json = serde_json::to_vec(self).expect("a token has no failing serializers");
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(Zeroizing::new(json))))
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is a secret and not repeated.
        let refuse =
            || format!("this is not a join token: one begins with {PREFIX} and is copied whole");
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(refuse)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| refuse())?);
        serde_json::from_slice(&json).map_err(|_| refuse())
    }
}
