//! The time from a call to the first HTTP 200 of what it starts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use longshore_e2e::http::Request;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(1);
/// How long one try may take. Longer than an answer takes, and short, because a try that went to a
/// container on its way up may be lost: docker's proxy accepts before there is anyone behind it.
const TRY: Duration = Duration::from_millis(10);
/// Something is broken after this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// From when on the address is asked. The time is counted from the call either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskFrom {
    /// At once, while the call is under way.
    TheCall,
    /// Once the call has returned. For docker: its proxy listens before the container has a
    /// network, and who asks then makes the kernel look for the container's hardware address in
    /// vain and not again for a second, which would count against docker and is the asker's fault.
    ItsReturn,
}

/// Calls `start`, and asks `address` every millisecond until it answers with 200.
pub fn time_to_first_answer(
    address: SocketAddr,
    host: &str,
    from: AskFrom,
    start: impl FnOnce() -> Result<()> + Send,
) -> Result<Duration> {
    let request = Request { timeout: TRY, ..Request::get(host, "/") };
    let began = Instant::now();
    if from == AskFrom::ItsReturn {
        start()?;
        return poll(&request, address, began);
    }
    std::thread::scope(|scope| {
        let starter = scope.spawn(start);
        let outcome = poll(&request, address, began);
        starter.join().expect("starting does not panic")?;
        outcome
    })
}

fn poll(request: &Request<'_>, address: SocketAddr, began: Instant) -> Result<Duration> {
    while began.elapsed() < PATIENCE {
        if request.send(address).is_ok_and(|response| response.status == 200) {
            return Ok(began.elapsed());
        }
        std::thread::sleep(PAUSE);
    }
    bail!("{address} did not answer in {PATIENCE:?}");
}
