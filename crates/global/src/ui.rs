//! The dashboard at `/ui`: files that are part of the binary, and the headers under which a browser runs
//! them.
//!
//! It is a client of the public API like any other, written as plain HTML, CSS and modules in `dashboard/`,
//! so there is nothing to build and nothing that comes from elsewhere. The files need no token; what they
//! show does.
//!
//! All files but the page lie below a name made of their contents, so a browser keeps them for good and yet
//! never mixes those of two versions. The page itself is asked for again each time, and answered with `304`
//! when it is the same. Rejected: a hash in each file's name, for which the modules that name each other
//! would have to be rewritten.

mod files;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, StatusCode, header};
use longshore_api::Problem;
use longshore_link::Refusal;
use sha2::{Digest as _, Sha256};

use crate::hash::hex;
use files::{FILES, PAGE};

/// What the page may do: run its own scripts, use its own styles and pictures, ask this server. Nothing
/// inline but the script of the page itself, by its hash, and nothing from elsewhere, no frame around it, no
/// form that is sent, and no text that becomes markup or script: what a hostile image writes into its log is
/// shown and cannot act.
const POLICY: &str = "default-src 'none'; \
                      script-src 'self' 'sha256-LSdndWnv485UmkzybQ6NSGoRyJc5kOPH0SNw9/5vGGg='; \
                      style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// Headers of every answer here.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// For what lies below a name made of its contents.
const FOR_GOOD: &str = "public, max-age=31536000, immutable";

/// Serves the dashboard at `/ui/`, and shows the way there.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let to_page = || async { (HEADERS, Redirect::temporary("/ui/")) };
    Router::new()
        .route("/", get(to_page))
        .route("/ui", get(to_page))
        .route("/ui/", get(page))
        .route("/ui/{version}/{*file}", get(file))
        .with_state(Arc::new(Dashboard::new()))
}

/// Everything that is served.
struct Dashboard {
    page: Served,
    version: String,
    files: Vec<(&'static str, Served)>,
}

/// A file as it is sent.
struct Served {
    media_type: &'static str,
    tag: String,
    plain: Bytes,
    gzip: Bytes,
}

impl Dashboard {
    fn new() -> Self {
        let mut all = Sha256::new();
        for (name, text) in FILES {
            all.update(name.as_bytes());
            all.update(text.as_bytes());
        }
        let version = short_hash(all);
        let page = PAGE.replace("{{base}}", &version).replace("{{modules}}", &modules(&version));
        let files = FILES.iter().map(|(name, text)| {
            (*name, Served::new(media_type(name), Bytes::from_static(text.as_bytes())))
        });
        Self {
            page: Served::new("text/html; charset=utf-8", page.into()),
            files: files.collect(),
            version,
        }
    }
}

/// Lets the browser ask for all modules at once instead of one after the other as each names the next.
fn modules(version: &str) -> String {
    let modules = FILES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".js"));
    modules.fold(String::new(), |mut links, name| {
        writeln!(links, "<link rel=\"modulepreload\" href=\"{version}/{name}\">")
            .expect("a string takes everything");
        links
    })
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

fn short_hash(hash: Sha256) -> String {
    hex(&hash.finalize()[..8])
}

impl Served {
    fn new(media_type: &'static str, plain: Bytes) -> Self {
        let tag = format!("\"{}\"", short_hash(Sha256::new_with_prefix(&plain)));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&plain).expect("a vector takes everything");
        let gzip = encoder.finish().expect("a vector takes everything").into();
        Self { media_type, tag, plain, gzip }
    }

    fn answer(&self, asked: &HeaderMap, caching: &'static str) -> Response {
        let about = [
            (header::CACHE_CONTROL, caching),
            (header::ETAG, self.tag.as_str()),
            (header::VARY, "accept-encoding"),
        ];
        let is_known =
            has(asked, header::IF_NONE_MATCH, |tag| tag.trim_start_matches("W/") == self.tag);
        if is_known {
            return (StatusCode::NOT_MODIFIED, HEADERS, about).into_response();
        }
        let kind = [(header::CONTENT_TYPE, self.media_type)];
        if has(asked, header::ACCEPT_ENCODING, |coding| coding == "gzip") {
            let coding = [(header::CONTENT_ENCODING, "gzip")];
            return (HEADERS, about, kind, coding, self.gzip.clone()).into_response();
        }
        (HEADERS, about, kind, self.plain.clone()).into_response()
    }
}

/// True when an element of a header that is a list passes, its parameters left out.
fn has(headers: &HeaderMap, name: HeaderName, passes: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|element| {
        let (element, parameters) = element.split_once(';').unwrap_or((element, ""));
        parameters.trim() != "q=0" && passes(element.trim())
    })
}

async fn page(State(dashboard): State<Arc<Dashboard>>, asked: HeaderMap) -> Response {
    dashboard.page.answer(&asked, "no-cache")
}

async fn file(
    State(dashboard): State<Arc<Dashboard>>,
    Path((version, name)): Path<(String, String)>,
    asked: HeaderMap,
) -> Response {
    let found = dashboard.files.iter().find(|(known, _)| *known == name);
    match found.filter(|_| version == dashboard.version) {
        Some((_, served)) => served.answer(&asked, FOR_GOOD),
        None => (HEADERS, Refusal(Problem::not_found("file", name))).into_response(),
    }
}

#[cfg(test)]
mod tests;
