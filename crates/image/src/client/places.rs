//! Where a registry may send us. What it names is a stranger's word: a registry, or who took one over, must not
//! have us ask what only this machine or its network can reach, nor send in the clear what came by TLS.

use std::net::IpAddr;

use reqwest::Url;
use reqwest::redirect::{Attempt, Policy};

/// As many hosts one after the other as anybody needs.
const MAX_REDIRECTS: usize = 5;

/// Why a place is none to go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// Something else than HTTP.
    #[error("it is no address of a web server")]
    Scheme,
    /// In the clear, from a registry that is spoken to by TLS.
    #[error("it is not https, as the registry is")]
    Clear,
    /// An address of this machine or of a private network, of a registry that is elsewhere.
    #[error("it is an address inside of this network, where the registry is not")]
    Inside,
    /// It says as whom to ask.
    #[error("it has a user name in it")]
    User,
    /// There are more hops than anybody needs.
    #[error("it is one redirect too many")]
    TooMany,
}

/// Refuses an address that a registry must not send us to.
pub(super) fn check(registry: &Url, place: &Url) -> Result<(), Misplaced> {
    match (registry.scheme(), place.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(Misplaced::Clear),
        _ => return Err(Misplaced::Scheme),
    }
    if !place.username().is_empty() || place.password().is_some() {
        return Err(Misplaced::User);
    }
    // What a name stands for is not looked at: who names it must control what it stands for anyway.
    if is_inside(place) && !is_inside(registry) {
        return Err(Misplaced::Inside);
    }
    Ok(())
}

/// Follows redirects of this registry as far as they are allowed. Credentials never go along to another host.
pub(super) fn policy(registry: &Url) -> Policy {
    let registry = registry.clone();
    Policy::custom(move |attempt: Attempt<'_>| {
        let checked = match attempt.previous().len() > MAX_REDIRECTS {
            true => Err(Misplaced::TooMany),
            false => check(&registry, attempt.url()),
        };
        match checked {
            Ok(()) => attempt.follow(),
            Err(misplaced) => attempt.error(misplaced),
        }
    })
}

fn is_inside(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_unspecified()
                // What providers give to their customers' insides (RFC 6598).
                || address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_sends_us_to_no_place_inside_and_not_into_the_clear() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let (public, clear) = (url("https://registry.example.com"), url("http://registry.test"));
        let here = url("http://127.0.0.1:5000");
        for (registry, place, expected) in [
            (&public, "https://auth.example.org/token", Ok(())),
            (&public, "https://203.0.113.7/token", Ok(())),
            (&public, "http://registry.example.com/token", Err(Misplaced::Clear)),
            (&public, "http://127.0.0.1:4600/v1", Err(Misplaced::Clear)),
            (&public, "https://127.0.0.1/", Err(Misplaced::Inside)),
            (&public, "https://10.1.2.3/", Err(Misplaced::Inside)),
            (&public, "https://169.254.169.254/latest", Err(Misplaced::Inside)),
            (&public, "https://100.64.0.1/", Err(Misplaced::Inside)),
            (&public, "https://[::1]/", Err(Misplaced::Inside)),
            (&public, "https://[::ffff:10.0.0.1]/", Err(Misplaced::Inside)),
            (&public, "https://[fd00::1]/", Err(Misplaced::Inside)),
            (&public, "https://[fe80::1]/", Err(Misplaced::Inside)),
            // As browsers read them, too.
            (&public, "https://2130706433/", Err(Misplaced::Inside)),
            (&public, "https://localhost/", Err(Misplaced::Inside)),
            (&public, "https://a.localhost./", Err(Misplaced::Inside)),
            (&public, "https://user@auth.example.org/", Err(Misplaced::User)),
            (&public, "ftp://registry.example.com/", Err(Misplaced::Scheme)),
            (&public, "file:///etc/passwd", Err(Misplaced::Scheme)),
            (&clear, "http://auth.test/token", Ok(())),
            (&clear, "http://127.0.0.1:4600/v1", Err(Misplaced::Inside)),
            (&here, "http://127.0.0.1:5001/token", Ok(())),
        ] {
            assert_eq!(check(registry, &url(place)), expected, "{registry} to {place}");
        }
    }
}
