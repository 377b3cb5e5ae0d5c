//! Lists of tags and of repositories, page by page.

use std::sync::Arc;

use axum::http::header::LINK;
use axum::response::Response;
use longshore_types::Repository;
use longshore_types::token::{RegistryAction, Rights};
use serde::Deserialize;
use serde_json::json;

use crate::Registry;
use crate::refusal::{Code, Refusal};
use crate::server::{json, set};

/// The most that one answer holds, whatever `n` asks for.
const MAX_PAGE: usize = 10_000;

/// Which page a client wants: at most `n` entries after `last`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Page {
    n: Option<String>,
    pub(crate) last: Option<String>,
}

pub(crate) async fn tags(
    registry: &Arc<Registry>,
    repository: Repository,
    page: Page,
) -> Result<Response, Refusal> {
    let of = repository.clone();
    let tags = registry.blocking(move |storage| storage.tags(&of)).await?;
    let tags = tags.ok_or_else(|| Refusal::name_unknown(&repository))?;
    let (tags, next) = page.cut(tags)?;
    let mut response = json(&json!({"name": repository, "tags": tags}));
    if let Some(next) = next {
        let link = format!("</v2/{repository}/tags/list?{next}>; rel=\"next\"");
        set(&mut response, LINK, link);
    }
    Ok(response)
}

/// The repositories from which the token may pull; of others it does not even learn the names.
pub(crate) async fn catalog(
    registry: &Arc<Registry>,
    page: Page,
    rights: &Rights,
) -> Result<Response, Refusal> {
    let mut repositories = registry.blocking(|storage| storage.catalog()).await?;
    repositories.retain(|repository| rights.allows(repository, RegistryAction::Pull));
    let names = repositories.into_iter().map(String::from).collect();
    let (names, next) = page.cut(names)?;
    let mut response = json(&json!({"repositories": names}));
    if let Some(next) = next {
        set(&mut response, LINK, format!("</v2/_catalog?{next}>; rel=\"next\""));
    }
    Ok(response)
}

impl Page {
    /// The most entries that the page may have: what was asked for, up to `most`.
    pub(crate) fn limit(&self, most: usize) -> Result<usize, Refusal> {
        let Some(text) = &self.n else {
            return Ok(most);
        };
        let n = text.parse::<usize>().map_err(|_| {
            let message = format!("n is {text:?}; it must be a whole number");
            Refusal::bad(Code::PaginationNumberInvalid, message)
        })?;
        Ok(n.min(most))
    }

    /// The entries of this page of a sorted list, and the query of the next one if there is more.
    fn cut(&self, mut entries: Vec<String>) -> Result<(Vec<String>, Option<String>), Refusal> {
        let n = self.limit(MAX_PAGE)?;
        if let Some(last) = &self.last {
            let first = entries.partition_point(|entry| entry <= last);
            entries.drain(..first);
        }
        let more = entries.len() > n;
        entries.truncate(n);
        // Tags and names of repositories need no escape in a query. A page of none has no next one.
        let next = entries.last().filter(|_| more).map(|last| format!("n={n}&last={last}"));
        Ok((entries, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let all = || ["a", "b", "c"].map(str::to_owned).to_vec();
        for (n, last, expected, next) in [
            (None, None, vec!["a", "b", "c"], None),
            (Some("2"), None, vec!["a", "b"], Some("n=2&last=b")),
            (Some("2"), Some("b"), vec!["c"], None),
            (Some("1"), Some("aa"), vec!["b"], Some("n=1&last=b")),
            (Some("3"), None, vec!["a", "b", "c"], None),
            (Some("0"), None, vec![], None),
            (None, Some("z"), vec![], None),
        ] {
            let page = Page { n: n.map(str::to_owned), last: last.map(str::to_owned) };
            let (found, found_next) = page.cut(all()).unwrap();
            assert_eq!(
                (found, found_next.as_deref()),
                (expected.into_iter().map(str::to_owned).collect(), next)
            );
        }
        for bad in ["-1", "x", "", "1.5"] {
            let page = Page { n: Some(bad.to_owned()), last: None };
            assert!(page.cut(all()).is_err(), "{bad}");
        }
    }
}
