//! The metrics of a role.
//!
//! Prometheus's own client is used, and its text format, which every scraper reads. A role's names
//! begin with `longshore_` and the role, those of all roles with `longshore_` or `process_`. Labels
//! have few values: names of apps that are deployed, and words of closed lists; never what a
//! stranger sends.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use longshore_link::{Listener, Service};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
pub use prometheus_client::registry::{Registry, Unit};

use crate::process;

/// The path below which they are served.
pub const PATH: &str = "/metrics";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    role: &'static str,
    version: &'static str,
}

/// A registry with what every role tells, to be filled by its `metrics.rs`.
pub fn registry(role: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Family::<Build, Gauge>::default();
    build.get_or_create(&Build { role, version }).set(1);
    registry.register("longshore_build_info", "1, with the role and its version", build);
    process::register(&mut registry);
    registry
}

/// Serves a registry below [`PATH`], where anyone may ask for it, as a task of a role.
pub fn serve(registry: Registry, listener: Listener, service: &Service) {
    service.spawn("metrics", listener.serve(router(registry), service.shutdown()));
}

fn router(registry: Registry) -> Router {
    Router::new().route(PATH, get(answer)).with_state(Arc::new(registry))
}

async fn answer(State(registry): State<Arc<Registry>>) -> Response {
    // Some of it is read from files of the kernel.
    match tokio::task::spawn_blocking(move || text(&registry)).await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The text of a registry, as it is served.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_text::encode(&mut text, registry).expect("a text takes what is written to it");
    text
}

/// A histogram of times from a millisecond to a minute, as requests, plans and commits take.
pub fn times() -> Histogram {
    const SECONDS: [f64; 14] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
    Histogram::new(SECONDS)
}

/// A histogram of times from a millisecond to a quarter of an hour, as starts and pulls take.
pub fn long_times() -> Histogram {
    const SECONDS: [f64; 13] =
        [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 900.0];
    Histogram::new(SECONDS)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower_service::Service;

    use super::*;

    #[tokio::test]
    async fn a_registry_is_served_as_text_with_what_every_role_tells() {
        let mut router = router(registry("test", "1.2.3"));
        let request = Request::get(PATH).body(Body::empty()).unwrap();
        let answer = router.call(request).await.unwrap();
        assert!(answer.headers()[header::CONTENT_TYPE].to_str().unwrap().contains("version=0.0.4"));
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains("longshore_build_info{role=\"test\",version=\"1.2.3\"} 1"), "{text}");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
