//! Instances that speak HTTP/2.

use axum::Router;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use longshore_api::links::Endpoint;
use longshore_types::AppProtocol;
use tokio::net::TcpListener;

use super::played::*;

/// An instance that answers with what it saw of a request.
async fn telling() -> (Instance, Endpoint) {
    let instance =
        Instance::start(Router::new().fallback(async |request: axum::extract::Request| {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let mut names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            let (method, uri, version) = (head.method, head.uri, head.version);
            format!("{method} {uri} {version:?} {} {}", names.join(","), body.len())
        }));
    let instance = instance.await;
    let endpoint = Endpoint { protocol: AppProtocol::H2c, ..instance.endpoint.clone() };
    (instance, endpoint)
}

fn asked(method: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri("/path?q=1")
        .header(header::HOST, "WEB.test:80")
        .header("x-request-id", "mine")
        .header(header::CONNECTION, "upgrade, x-hop")
        .header(header::UPGRADE, "websocket")
        .header("x-hop", "1")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn users_of_http1_are_served_by_instances_of_http2() {
    let (_instance, endpoint) = telling().await;
    let scene = Scene::new(&[&endpoint]).await;
    for (method, body, length) in [("GET", "", ""), ("POST", "12345", "content-length,")] {
        let expected = format!(
            "{method} http://WEB.test:80/path?q=1 HTTP/2.0 {length}x-forwarded-for,x-forwarded-host,\
             x-forwarded-proto,x-request-id {}",
            body.len()
        );
        assert_eq!(text(scene.ingress.send(asked(method, body)).await).await, expected);
    }
}

#[tokio::test]
async fn a_request_takes_the_form_of_each_instance_that_it_is_tried_with() {
    let alive = Instance::saying("alive").await;
    let (_instance, other) = telling().await;
    for (protocol, alive) in [(AppProtocol::H2c, &alive.endpoint), (AppProtocol::Http1, &other)] {
        for _ in 0..10 {
            let dead = Endpoint { protocol, ..dead_endpoint().await };
            let scene = Scene::new(&[&dead, alive]).await;
            let answer = scene.ingress.send(asked("POST", "12345")).await;
            assert_eq!(answer.status(), StatusCode::OK);
        }
    }
}

/// An instance that refuses every request as one that it did not look at.
async fn refusing() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = endpoint(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            tokio::spawn(async move {
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    answer.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    Endpoint { protocol: AppProtocol::H2c, ..endpoint }
}

#[tokio::test]
async fn a_refused_request_without_a_body_goes_to_another_instance() {
    let (_instance, alive) = telling().await;
    let refusing = refusing().await;
    let scene = Scene::new(&[&refusing, &alive]).await;
    let asking = (0..20).map(|_| scene.ingress.send(asked("DELETE", "")));
    for answer in in_time("all answers", join_all(asking)).await {
        assert_eq!(answer.status(), StatusCode::OK);
    }
    scene.location.give_and_wait(2, &[&refusing]).await;
    for (method, body) in [("GET", ""), ("POST", "12345")] {
        let answer = scene.ingress.send(asked(method, body)).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{method}");
    }
}
