//! Requests at a steady rate, and slow ones beside them, that go on while a release is replaced. The slow
//! ones are orders (POST): nobody may send such a one twice, so what breaks one off loses it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use longshore_e2e::http::Request;

/// Requests a second, each on a connection of its own.
const RATE: u32 = 500;
/// Clients that send them; each may wait for an answer while the others go on.
const N_CLIENTS: u32 = 25;
/// Clients that post what takes a second, one after the other.
const N_SLOW: u32 = 5;
/// What takes a second.
const SLOW: &str = "/cgi-bin/slow";
/// An answer that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of the requests.
#[derive(Debug, Default)]
pub struct Load {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    /// Starts all clients; they end when [`Load::stop`] was called.
    pub fn start<'a>(&'a self, scope: &'a Scope<'a, '_>, address: SocketAddr, host: &'a str) {
        let between = Duration::from_secs(1) * N_CLIENTS / RATE;
        for idx in 0..N_CLIENTS {
            scope.spawn(move || {
                let mut next = Instant::now() + between * idx / N_CLIENTS;
                while !self.stop.load(Ordering::Relaxed) {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    // A client that fell behind catches up, so that the rate stays what it is.
                    next += between;
                    self.ask(address, &Request::get(host, "/"));
                }
            });
        }
        for _ in 0..N_SLOW {
            scope.spawn(move || {
                while !self.stop.load(Ordering::Relaxed) {
                    let body = Some(b"{}".as_slice());
                    let order = Request { method: "POST", body, ..Request::get(host, SLOW) };
                    self.ask(address, &order);
                }
            });
        }
    }

    fn ask(&self, address: SocketAddr, request: &Request<'_>) {
        let request = Request { timeout: PATIENCE, ..request.clone() };
        let failure = match request.send(address) {
            Ok(answer) if answer.status == 200 => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(answer) => format!("{} answered {}", request.path, answer.status),
            Err(error) => format!("{}: {error:#}", request.path),
        };
        let mut failures = self.failures.lock().expect("no client panics");
        *failures.entry(failure).or_default() += 1;
    }

    /// Ends all clients after their present request.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How many were answered with 200.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How often each failure was seen.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.failures.lock().expect("no client panics").clone()
    }
}
