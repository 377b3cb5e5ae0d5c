//! What the ingress answers by itself.
//!
//! These codes are for the users of apps and stand beside, not among, those of the REST API: an
//! ingress knows nothing that an API client would act on, and an app's own answers share the wire.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use longshore_api::problem::MEDIA_TYPE;
use longshore_types::AppName;

/// A host name is shown in an answer up to this length, the longest that a valid one can have.
const MAX_SHOWN_HOST: usize = 253;

/// Why the ingress answers a request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request cannot be routed whatever the table says.
    Invalid(&'static str),
    /// A method that asks for a tunnel to somewhere else.
    Tunnel,
    /// No app has this host name.
    UnknownHost(String),
    /// The ingress was just started and has no routes yet.
    NoRoutes,
    /// The app has no healthy instance.
    NoInstance(AppName),
    /// Too many requests at one time.
    Overloaded,
    /// No instance accepted a connection.
    Unreachable,
    /// The connection to the instance broke, or its answer is not HTTP.
    Broken,
    /// The instance gave no byte for too long.
    Silent,
    /// The user's side gave no byte of the request's body for too long.
    ClientSilent,
}

impl Fault {
    /// Every code.
    pub const CODES: [&str; 10] = [
        "invalid-request",
        "tunnel-refused",
        "unknown-host",
        "no-routes-yet",
        "no-healthy-instance",
        "ingress-overloaded",
        "instance-unreachable",
        "instance-broke-off",
        "instance-silent",
        "request-incomplete",
    ];

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid-request",
            Self::Tunnel => "tunnel-refused",
            Self::UnknownHost(_) => "unknown-host",
            Self::NoRoutes => "no-routes-yet",
            Self::NoInstance(_) => "no-healthy-instance",
            Self::Overloaded => "ingress-overloaded",
            Self::Unreachable => "instance-unreachable",
            Self::Broken => "instance-broke-off",
            Self::Silent => "instance-silent",
            Self::ClientSilent => "request-incomplete",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Tunnel => StatusCode::NOT_IMPLEMENTED,
            Self::UnknownHost(_) => StatusCode::NOT_FOUND,
            Self::NoRoutes | Self::NoInstance(_) | Self::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Silent => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientSilent => StatusCode::REQUEST_TIMEOUT,
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "The request is not valid",
            Self::Tunnel => "Tunnels are not offered",
            Self::UnknownHost(_) => "Nothing is deployed here",
            Self::NoRoutes => "Starting",
            Self::NoInstance(_) => "No healthy instance",
            Self::Overloaded => "Too many requests",
            Self::Unreachable => "The app cannot be reached",
            Self::Broken => "The app broke off",
            Self::Silent => "The app did not answer in time",
            Self::ClientSilent => "The request did not arrive in time",
        }
    }

    /// What is wrong, in words for the user.
    pub fn detail(&self) -> String {
        match self {
            Self::Invalid(detail) => (*detail).to_owned(),
            Self::Tunnel => "the method CONNECT is not served here".to_owned(),
            Self::UnknownHost(host) => {
                let shown = host.get(..MAX_SHOWN_HOST).unwrap_or(host);
                format!("no app has the host name {shown}")
            }
            Self::NoRoutes => "the ingress has just been started and has no routes yet".to_owned(),
            Self::NoInstance(app) => format!("app {app} has no healthy instance now"),
            Self::Overloaded => "the ingress serves as many requests as it can".to_owned(),
            Self::Unreachable => "no instance of the app accepts a connection".to_owned(),
            Self::Broken => "the instance closed the connection without a valid answer".to_owned(),
            Self::Silent => "the instance took the request and has sent nothing since".to_owned(),
            Self::ClientSilent => "the rest of the request's body did not arrive".to_owned(),
        }
    }

    /// Seconds after which another try makes sense.
    fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::NoRoutes | Self::NoInstance(_) => Some(HeaderValue::from_static("2")),
            Self::Overloaded => Some(HeaderValue::from_static("1")),
            _ => None,
        }
    }

    /// The answer: a problem document, or a small page for a browser.
    pub fn answer(&self, as_html: bool) -> Response<Full<Bytes>> {
        let (kind, body) = match as_html {
            true => ("text/html; charset=utf-8", self.page()),
            false => (MEDIA_TYPE, self.document()),
        };
        let mut answer = Response::new(Full::from(body));
        *answer.status_mut() = self.status();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds);
        }
        answer
    }

    fn document(&self) -> String {
        serde_json::json!({
            "code": self.code(),
            "title": self.title(),
            "status": self.status().as_u16(),
            "detail": self.detail(),
        })
        .to_string()
    }

    fn page(&self) -> String {
        let (status, title) = (self.status().as_u16(), self.title());
        let detail = escape(&self.detail());
        let code = self.code();
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>{status} {title}</title>\
             <body style=\"font:1rem/1.5 sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem\">\
             <h1>{title}</h1><p>{detail}.</p><p><small>{status} {code}</small></p></body></html>\n"
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// True when a client would rather have a page than JSON: it names HTML, and at least as high as
/// any kind of JSON. A bare `*/*`, as command-line clients send, is no wish for a page.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    let (mut html, mut json) = (0.0_f32, 0.0_f32);
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    for range in lines.flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        match kind.as_str() {
            "text/html" | "application/xhtml+xml" => html = html.max(weight),
            "application/json" | MEDIA_TYPE => json = json.max(weight),
            _ => {}
        }
    }
    html > 0.0 && html >= json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page() {
        let app = "web".parse().unwrap();
        for fault in [
            Fault::Invalid("x"),
            Fault::Tunnel,
            Fault::UnknownHost(String::new()),
            Fault::NoRoutes,
            Fault::NoInstance(app),
            Fault::Overloaded,
            Fault::Unreachable,
            Fault::Broken,
            Fault::Silent,
            Fault::ClientSilent,
        ] {
            assert!(Fault::CODES.contains(&fault.code()), "{}", fault.code());
            let pages = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
            let page = std::fs::read_to_string(format!("{pages}/{}.md", fault.code())).unwrap();
            let status = fault.status().as_u16().to_string();
            assert!(page.contains(&status), "{}: {page}", fault.code());
        }
    }

    #[test]
    fn pages_are_for_those_who_ask_for_them() {
        for (accept, html) in [
            ("", false),
            ("*/*", false),
            ("application/json", false),
            ("text/html", true),
            ("TEXT/HTML;level=1;q=0.5", true),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("application/json, text/html;q=0.9", false),
            ("text/html;q=0.4, application/problem+json;q=0.3", true),
            ("text/html;q=0", false),
            ("text/html;q=NaN", false),
            ("text/html;q=;;,,", false),
        ] {
            let value = HeaderValue::from_str(accept).unwrap();
            let headers = HeaderMap::from_iter([(header::ACCEPT, value)]);
            assert_eq!(prefers_html(&headers), html, "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn a_page_holds_nothing_that_the_client_could_have_injected() {
        let fault = Fault::UnknownHost("<script>&\"".to_owned());
        assert!(fault.page().contains("&lt;script&gt;&amp;&quot;"));
        let long = Fault::UnknownHost("x".repeat(10_000));
        assert!(long.document().len() < 500);
    }
}
