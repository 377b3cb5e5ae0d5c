//! One request through the ingress, as a browser would make it.

use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::failure::{Failure, Kind, OrFail};

const MAX_ANSWER: usize = 64 << 10;
const DOING: &str = "a request through the ingress failed";

/// `GET /` of `host`, sent to the ingress at `authority`: the text of the answer.
pub async fn get(authority: &str, host: &str) -> Result<String, Failure> {
    let stream = TcpStream::connect(authority).await.or_fail(Kind::Unavailable, DOING)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .or_fail(Kind::Unavailable, DOING)?;
    let request = http::Request::get("/")
        .header(HOST, host)
        .body(Empty::<Bytes>::new())
        .or_fail(Kind::Other, DOING)?;
    let exchange = async {
        let answer = sender.send_request(request).await.or_fail(Kind::Unavailable, DOING)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body =
            body.map_err(|error| Failure::new(Kind::Unavailable, format!("{DOING}: {error}")))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        match status.is_success() {
            true => Ok(text),
            false => Err(Failure::new(Kind::Unavailable, format!("{DOING}: {status}: {text}"))),
        }
    };
    // The connection is driven beside the exchange and dropped with it.
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error).or_fail(Kind::Unavailable, DOING),
    }
}
