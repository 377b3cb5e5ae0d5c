use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Server;
use super::message::Query;
use super::udp::{PAUSE, answer};

/// How long a connection stays open without a question, or with an answer that nobody takes.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Answers connections for ever.
pub(super) async fn serve(server: &Arc<Server>) {
    loop {
        let (stream, peer) = match server.tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a DNS connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(client) = server.client(peer) else { continue };
        let Some(permit) = server.tcp_budget.try_acquire(client) else { continue };
        let answering = Arc::clone(server);
        server.spawn(async move {
            if let Err(error) = converse(stream, &answering).await {
                tracing::debug!(%error, %peer, "a DNS connection ended early");
            }
            drop(permit);
        });
    }
}

/// Answers the questions of one connection in their order.
async fn converse(mut stream: TcpStream, server: &Server) -> io::Result<()> {
    loop {
        let Ok(message) = timeout(IDLE_LIMIT, read_message(&mut stream)).await else {
            return Ok(());
        };
        let Some(query) = Query::parse(&message?) else { return Ok(()) };
        let answer = answer(&server.upstreams, &query, exchange).await;
        timeout(IDLE_LIMIT, write_message(&mut stream, &answer)).await??;
    }
}

async fn exchange(upstream: SocketAddr, query: Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_message(&mut stream, query.as_bytes()).await?;
    let answer = read_message(&mut stream).await?;
    if !query.is_answered_by(&answer) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is to another question",
        ));
    }
    Ok(answer)
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a DNS message over 64 KiB");
    let len = u16::try_from(message.len()).map_err(too_long)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}
