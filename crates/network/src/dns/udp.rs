use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::message::{MAX_ANSWER_LEN, MAX_QUERY_LEN, Query, is_failure};
use super::upstreams::Upstreams;
use super::{ANSWER_LIMIT, PATIENCE, Server};

/// After an error that would repeat at once.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Answers datagrams for ever.
pub(super) async fn serve(server: &Arc<Server>) {
    // One byte more than allowed, so that a longer datagram is not taken for its beginning.
    let mut buffer = [0; MAX_QUERY_LEN + 1];
    loop {
        let (len, peer) = match server.udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "receive a DNS question");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(client) = server.client(peer) else { continue };
        let Some(query) = Query::parse(&buffer[..len]) else { continue };
        let Some(permit) = server.udp_budget.try_acquire(client) else { continue };
        let answering = Arc::clone(server);
        server.spawn(async move {
            let answer = answer(&answering.upstreams, &query, exchange).await;
            // Lost like any datagram may be; the client asks again.
            let _ = answering.udp.send_to(&answer, peer).await;
            drop(permit);
        });
    }
}

/// Asks the resolvers until one answers: the next one when one failed, or has been silent for a
/// while, which it then may still end. When none answers in time, or none but with a failure, the
/// answer is a failure.
pub(super) async fn answer<F>(
    upstreams: &Upstreams,
    query: &Query,
    exchange: impl Fn(SocketAddr, Query) -> F,
) -> Vec<u8>
where
    F: Future<Output = io::Result<Vec<u8>>>,
{
    let asked = async {
        let mut failure = None;
        let mut unasked = upstreams.in_turn().into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            if let Some((place, upstream)) = unasked.next() {
                let exchange = exchange(upstream, query.clone());
                asked.push(async move { (place, upstream, exchange.await) });
            }
            let patience = if unasked.len() == 0 { ANSWER_LIMIT } else { PATIENCE };
            let Ok(next) = timeout(patience, asked.next()).await else { continue };
            match next {
                Some((_, _, Ok(answer))) if is_failure(&answer) => failure = Some(answer),
                Some((place, _, Ok(answer))) => {
                    upstreams.answered(place);
                    return Some(answer);
                }
                Some((_, upstream, Err(error))) => {
                    tracing::debug!(%upstream, %error, "a resolver did not answer");
                }
                None => return failure,
            }
        }
    };
    let answer = timeout(ANSWER_LIMIT, asked).await.ok().flatten();
    answer.unwrap_or_else(|| query.server_failure())
}

/// One question to one resolver, from a port of its own: connected, so that only that resolver's
/// datagrams arrive, and a closed port is told at once.
async fn exchange(upstream: SocketAddr, query: Query) -> io::Result<Vec<u8>> {
    let any = match upstream {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(query.as_bytes()).await?;
    let mut buffer = vec![0; MAX_ANSWER_LEN];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if query.is_answered_by(&buffer[..len]) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}
