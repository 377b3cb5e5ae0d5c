//! Requests that a role answers: how many, how they ended, how long they took.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::times;

/// Of few values: the method, the route as the router has it, the status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: String,
}

/// Counts and measures requests.
#[derive(Debug, Clone)]
pub struct Requests {
    answers: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
    route: fn(&Request) -> String,
}

/// The route as the router has it, with its parameters by name; what no route matches is one.
pub fn matched(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    matched.map_or("none", MatchedPath::as_str).to_owned()
}

impl Requests {
    /// Those whose routes are told apart by `route`, which must have few values.
    pub fn new(route: fn(&Request) -> String) -> Self {
        let durations = Family::new_with_constructor(times as fn() -> Histogram);
        Self { answers: Family::default(), durations, route }
    }

    /// Registers `requests_total` and `request_duration_seconds`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests answered", self.answers.clone());
        registry.register_with_unit(
            "request_duration",
            "From a request's head to the head of its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
    }

    /// Tells of one request that there was not, so that the documentation can be held against the
    /// labels too: what was never counted is not told at all.
    pub fn invent(&self) {
        self.note("GET", "/".to_owned(), 200, 0.0);
    }

    fn note(&self, method: &'static str, route: String, status: u16, seconds: f64) {
        let asked = Asked { method, route: route.clone() };
        self.durations.get_or_create(&asked).observe(seconds);
        self.answers.get_or_create(&Answered { method, route, status }).inc();
    }

    /// The router with its requests counted and measured.
    pub fn measure(self, router: Router) -> Router {
        router.layer(from_fn_with_state(Arc::new(self), measure))
    }
}

async fn measure(State(requests): State<Arc<Requests>>, request: Request, next: Next) -> Response {
    let (began, route) = (Instant::now(), (requests.route)(&request));
    let method = method(request.method());
    let answer = next.run(request).await;
    let took = began.elapsed().as_secs_f64();
    requests.note(method, route, answer.status().as_u16(), took);
    answer
}

/// A method of those that are known; strangers may send any.
fn method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
    use tower_service::Service;

    use super::*;
    use crate::metrics::text;

    #[tokio::test]
    async fn requests_are_told_apart_by_route_and_never_by_what_is_in_them() {
        let inner = Router::new()
            .route("/apps/{app}", get(async || "fine"))
            .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR));
        let requests = Requests::new(matched);
        let mut registry = Registry::default();
        requests.register(&mut registry);
        let nested = Router::new().nest("/v1", inner).fallback(async || StatusCode::NOT_FOUND);
        let mut router = requests.measure(nested);
        for (method, path) in [
            ("GET", "/v1/apps/a"),
            ("GET", "/v1/apps/b"),
            ("GET", "/v1/broken"),
            ("DELETE", "/v1/broken"),
            ("BREW", "/v1/apps/a"),
            ("GET", "/what/ever"),
        ] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            router.call(request).await.unwrap();
        }
        let text = text(&registry);
        for line in [
            "requests_total{method=\"GET\",route=\"/v1/apps/{app}\",status=\"200\"} 2",
            "requests_total{method=\"GET\",route=\"/v1/broken\",status=\"500\"} 1",
            "requests_total{method=\"DELETE\",route=\"/v1/broken\",status=\"405\"} 1",
            "requests_total{method=\"other\",route=\"/v1/apps/{app}\",status=\"405\"} 1",
            "requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
            "request_duration_seconds_count{method=\"GET\",route=\"/v1/apps/{app}\"} 2",
        ] {
            assert!(text.lines().any(|one| one == line), "no {line} in\n{text}");
        }
    }
}
