//! Changes that are only wanted of what the sender has seen: `If-Match` and `If-None-Match`.
//!
//! The tag of an app is its generation, which every change raises. Looked at in the loop that writes on
//! the condition that nothing came in between, so nothing can.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_types::Generation;

use super::invalid;
use crate::catalog::AppKey;
use crate::records::AppRecord;

/// What must be so for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preconditions {
    expected: Option<Expected>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The app is there, whatever it is.
    Any,
    /// It is there and has this generation.
    Generation(Generation),
    /// It is not there.
    Nothing,
}

impl Preconditions {
    /// Whether an endpoint looks at them: one that changes an app.
    pub fn apply_to(path: &str, method: &str) -> bool {
        let of_app = path.strip_prefix("/projects/{project}/apps/{app}");
        method != "GET" && of_app.is_some_and(|rest| rest != "/plan")
    }

    /// Reads the headers of a request.
    pub fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let matches = one(headers, &header::IF_MATCH)?.map(|text| match text {
            "*" => Ok(Expected::Any),
            tag => parse_tag(tag).map(Expected::Generation).ok_or_else(|| {
                invalid("If-Match", tag, "the ETag of the app, its generation in quotes, or *")
            }),
        });
        let none_matches = one(headers, &header::IF_NONE_MATCH)?.map(|text| match text {
            "*" => Ok(Expected::Nothing),
            other => Err(invalid("If-None-Match", other, "*, for an app that is not there")),
        });
        let expected = matches.or(none_matches).transpose()?;
        Ok(Self { expected })
    }

    /// Refuses a change of an app that is not as expected.
    pub fn check(&self, key: &AppKey, before: Option<&AppRecord>) -> Result<(), Refusal> {
        let (name, detail) =
            (&key.1, |text: String| Refusal(Problem::new(ProblemCode::PreconditionFailed, text)));
        match (self.expected, before.map(|before| before.generation)) {
            (None, _) | (Some(Expected::Any), Some(_)) | (Some(Expected::Nothing), None) => Ok(()),
            (Some(Expected::Generation(expected)), Some(found)) if expected == found => Ok(()),
            (Some(Expected::Generation(expected)), Some(found)) => Err(detail(format!(
                "app {name} was changed meanwhile: its generation is {found}, not {expected}"
            ))),
            (Some(Expected::Nothing), Some(_)) => {
                Err(detail(format!("app {name} is there already")))
            }
            (Some(Expected::Any | Expected::Generation(_)), None) => {
                Err(detail(format!("app {name} is not there")))
            }
        }
    }
}

/// The tag of an app as a header.
pub fn etag(generation: Generation) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{generation}\""))
        .expect("digits in quotes are a header value")
}

fn parse_tag(text: &str) -> Option<Generation> {
    let digits = text.strip_prefix('"')?.strip_suffix('"')?;
    digits.parse().ok().map(Generation)
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    match (first.map(|value| value.to_str()), second) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text.trim())),
        (Some(_), _) => Err(invalid(name.as_str(), "(given)", "one value of plain text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: HeaderName, value: &str) -> Result<Preconditions, Refusal> {
        Preconditions::read(&HeaderMap::from_iter([(name, value.parse().unwrap())]))
    }

    #[test]
    fn tags_are_generations_in_quotes() {
        let tag = etag(Generation(7));
        let expected = read(header::IF_MATCH, tag.to_str().unwrap()).unwrap().expected;
        assert_eq!(expected, Some(Expected::Generation(Generation(7))));
        assert_eq!(read(header::IF_MATCH, " * ").unwrap().expected, Some(Expected::Any));
        assert_eq!(read(header::IF_NONE_MATCH, "*").unwrap().expected, Some(Expected::Nothing));
        for bad in ["7", "\"x\"", "W/\"7\"", "\"7\", \"8\"", ""] {
            assert!(read(header::IF_MATCH, bad).is_err(), "{bad}");
        }
        assert!(read(header::IF_NONE_MATCH, "\"7\"").is_err());
    }
}
