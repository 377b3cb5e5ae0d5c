//! Requests that go on while something else happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::eventually;
use crate::http::Request;

/// Between two requests of one client; light enough for two cores that also do the work.
const PAUSE: Duration = Duration::from_millis(10);

/// A client that asks one address for `/` over and over until it is stopped or dropped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    client: Option<JoinHandle<Vec<String>>>,
}

impl Traffic {
    /// Starts it. Every answer but a 200 is a failure.
    pub fn start(address: SocketAddr, host: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stop_seen, counter) = (Arc::clone(&stop), Arc::clone(&answered));
        let host = host.to_owned();
        let client = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stop_seen.load(Ordering::Relaxed) {
                match Request::get(&host, "/").send(address) {
                    Ok(response) if response.status == 200 => {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(response) => {
                        failures.push(format!("{}: {}", response.status, response.text()))
                    }
                    Err(error) => failures.push(format!("{error:#}")),
                }
                std::thread::sleep(PAUSE);
            }
            failures
        });
        Self { stop, answered, client: Some(client) }
    }

    /// How many requests were answered with 200 so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until a request is answered that began after this call, so that what comes next is met by requests,
    /// or what came before was.
    pub fn goes_on(&self) -> Result<()> {
        // One may be under way.
        let enough = self.answered() + 2;
        eventually("requests are answered", || Ok((self.answered() >= enough).then_some(())))
    }

    /// Ends it and gives what failed.
    pub fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let client = self.client.take().expect("it is stopped once");
        client.join().expect("the client does not panic")
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
