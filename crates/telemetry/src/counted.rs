//! Bytes of bodies that pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;

/// Counts the bytes of the bodies of requests and of answers.
#[derive(Debug, Clone, Default)]
pub struct Bodies {
    /// Of requests.
    pub received: Counter,
    /// Of answers.
    pub sent: Counter,
}

impl Bodies {
    /// The router with its bodies counted.
    pub fn measure(self, router: Router) -> Router {
        router.layer(from_fn_with_state(Arc::new(self), measure))
    }
}

async fn measure(State(bodies): State<Arc<Bodies>>, request: Request, next: Next) -> Response {
    let counted = |inner, counter: &Counter| Body::new(Counted { inner, counter: counter.clone() });
    let request = request.map(|body| counted(body, &bodies.received));
    next.run(request).await.map(|body| counted(body, &bodies.sent))
}

/// A body of which the bytes are counted, and nothing else is changed.
struct Counted {
    inner: Body,
    counter: Counter,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.counter.inc_by(u64::try_from(length).unwrap_or(u64::MAX));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use http_body_util::BodyExt;
    use tower_service::Service;

    use super::*;

    #[tokio::test]
    async fn bodies_pass_unchanged_and_are_counted() {
        let bodies = Bodies::default();
        let echo = Router::new().route("/", post(async |body: Bytes| [&body[..], b"!"].concat()));
        let mut router = bodies.clone().measure(echo);
        let answer = router.call(Request::post("/").body(Body::from("hello")).unwrap()).await;
        let body = answer.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), Some(6), "its length is still known");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello!");
        assert_eq!((bodies.received.get(), bodies.sent.get()), (5, 6));
    }
}
