//! What a registry says of how it wants to be logged in to: the header `WWW-Authenticate`.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// More than such a header has.
const MAX_HEADER: usize = 8 << 10;

/// A way to log in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password with each request.
    Basic,
    /// A token, which somebody else gives.
    Bearer(Bearer),
}

/// Where a token is to be had, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    /// The address, as the registry says it.
    pub(super) realm: String,
    /// What the registry calls itself there.
    pub(super) service: Option<String>,
    /// What the request needs.
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// The best that an answer offers: a token opens less than a password, and not for as long.
    pub(super) fn best(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let mut offered = texts.filter(|text| text.len() <= MAX_HEADER).flat_map(parse);
        let first = offered.next()?;
        if let Self::Bearer(_) = first {
            return Some(first);
        }
        Some(offered.find(|one| matches!(one, Self::Bearer(_))).unwrap_or(first))
    }
}

/// The challenges of a header that we know. One that has no realm leads nowhere.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let behind = behind.trim_start_matches([' ', '\t']);
        match (behind.strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, behind) = read_value(value.trim_start_matches([' ', '\t']));
                parameters.entry(word.to_ascii_lowercase()).or_insert(value);
                rest = behind;
            }
            _ => {
                found.push((word.to_ascii_lowercase(), BTreeMap::new()));
                rest = behind;
            }
        }
    }
    let known = found.into_iter().filter_map(|(scheme, mut parameters)| match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let realm = parameters.remove("realm")?;
            let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
            Some(Challenge::Bearer(Bearer { realm, service, scope }))
        }
        _ => None,
    });
    known.collect()
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

/// A parameter's value, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    // It has no end, so nothing follows.
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (service, scope) = (owned(service), owned(scope));
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service, scope })
    }

    #[test]
    fn what_registries_say_is_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        for (header, expected) in [
            (
                hub,
                Some(bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/nginx:pull,push"),
                )),
            ),
            ("bearer REALM = https://a/b , error=x", Some(bearer("https://a/b", None, None))),
            (r#"Basic realm="x", Bearer realm="https://a""#, Some(bearer("https://a", None, None))),
            (r#"Basic realm="a, Bearer realm=b""#, Some(Challenge::Basic)),
            (r#"Bearer realm="a\"b\\c""#, Some(bearer("a\"b\\c", None, None))),
            (r#"Bearer realm="a",realm="b""#, Some(bearer("a", None, None))),
            (r#"Bearer realm="unended"#, Some(bearer("unended", None, None))),
            ("Negotiate", None),
            ("Bearer", None),
            (r#"Bearer service="no realm""#, None),
            ("realm=\"x\"", None),
            ("", None),
            (",,, =", None),
        ] {
            let headers = [(WWW_AUTHENTICATE, header.parse().unwrap())].into_iter().collect();
            assert_eq!(Challenge::best(&headers), expected, "{header}");
        }
        let mut headers = HeaderMap::new();
        for value in ["Basic", "Bearer realm=r"] {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        assert_eq!(Challenge::best(&headers), Some(bearer("r", None, None)));
        let long = format!("Bearer realm=\"{}\"", "a".repeat(MAX_HEADER));
        let headers = [(WWW_AUTHENTICATE, long.parse().unwrap())].into_iter().collect();
        assert_eq!(Challenge::best(&headers), None);
        assert_eq!(Challenge::best(&HeaderMap::new()), None);
    }
}
