//! What a registry tells operators; `docs/metrics.md` says what each means.

use axum::Router;
use axum::extract::Request;
use longshore_telemetry::counted::Bodies;
use longshore_telemetry::metrics::{Registry, Unit};
use longshore_telemetry::requests::Requests;

use crate::route::{Route, Target};

/// The metrics of a registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Requests,
    bodies: Bodies,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { requests: Requests::new(kind), bodies: Bodies::default() }
    }
}

impl Metrics {
    /// Fills a registry of metrics with these.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("longshore_registry");
        self.requests.register(registry);
        let help = "Bodies of requests: what is pushed";
        registry.register_with_unit("received", help, Unit::Bytes, self.bodies.received.clone());
        let help = "Bodies of answers: what is pulled";
        registry.register_with_unit("sent", help, Unit::Bytes, self.bodies.sent.clone());
    }

    /// The router with its requests told of.
    pub fn measure(self, router: Router) -> Router {
        self.requests.measure(self.bodies.measure(router))
    }
}

/// What a request is about, without the names in it.
fn kind(request: &Request) -> String {
    let kind = match Route::parse(request.uri().path()) {
        Ok(Route::Base) => "base",
        Ok(Route::Token) => "token",
        Ok(Route::Catalog) => "catalog",
        Ok(Route::Garbage) => "garbage",
        Ok(Route::Converted(_)) => "converted",
        Ok(Route::Retention(_)) => "retention",
        Ok(Route::In(_, Target::Tags)) => "tags",
        Ok(Route::In(_, Target::Referrers(_))) => "referrers",
        Ok(Route::In(_, Target::Manifest(_))) => "manifest",
        Ok(Route::In(_, Target::Blob(_))) => "blob",
        Ok(Route::In(_, Target::Uploads | Target::Upload(_))) => "upload",
        Err(_) => "none",
    };
    kind.to_owned()
}

/// A registry of metrics as a registry of images fills it, to hold against the documentation.
pub fn described() -> Registry {
    let mut registry = registry();
    let metrics = Metrics::default();
    metrics.requests.invent();
    metrics.register(&mut registry);
    registry
}

/// A registry of metrics with what every role tells.
pub fn registry() -> Registry {
    longshore_telemetry::metrics::registry("registry", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn requests_are_told_apart_by_what_they_are_about() {
        for (path, expected) in [
            ("/v2/", "base"),
            ("/token", "token"),
            ("/v2/_catalog", "catalog"),
            ("/v2/_longshore/retention/a/b", "retention"),
            ("/v2/_longshore/converted/a/b", "converted"),
            ("/v2/a/b/tags/list", "tags"),
            ("/v2/a/b/manifests/latest", "manifest"),
            ("/v2/a/b/blobs/uploads/", "upload"),
            ("/metrics", "none"),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(kind(&request), expected, "{path}");
        }
    }
}
