//! How an instance's health is judged.
//!
//! A starting instance is tried at once and then ever less often, so that it serves as soon as it
//! can; a healthy one at its interval. Some failures in a row make it unhealthy, twice as many end
//! it; a start that takes too long ends it too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use longshore_types::{Health, HealthKind, InstancePhase};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// The first and the longest wait between two tries of a starting instance.
const STARTING_WAIT: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(500));

/// What a look at an instance led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    GoOn,
    /// End it, for this reason.
    GiveUp(String),
}

/// Judges one running container.
#[derive(Debug)]
pub struct Pulse {
    check: Option<(Health, SocketAddr)>,
    phase: InstancePhase,
    failures: u32,
    last_failure: Option<String>,
    next_at: Instant,
    wait: Duration,
    deadline: Instant,
}

impl Pulse {
    /// Begins with a container that was just started, or one that was adopted. Without a check it
    /// is healthy as long as it runs.
    pub fn new(health: Option<Health>, address: Option<Ipv4Addr>, adopted: bool) -> Self {
        let check = health.zip(address).map(|(health, address)| {
            let address = SocketAddr::from((address, health.port.get()));
            (health, address)
        });
        let now = Instant::now();
        let start_deadline = check.as_ref().map_or(Duration::ZERO, |(h, _)| h.start_deadline.0);
        let checked = check.is_some();
        // An adopted container is not given up sooner than one that just began.
        let phase =
            if checked && !adopted { InstancePhase::Starting } else { InstancePhase::Healthy };
        Self {
            check,
            phase,
            failures: 0,
            last_failure: None,
            next_at: now,
            wait: STARTING_WAIT.0,
            deadline: now + start_deadline,
        }
    }

    /// The phase that the looks so far amount to.
    pub fn phase(&self) -> InstancePhase {
        self.phase
    }

    /// What there is to say beyond the phase.
    pub fn note(&self) -> Option<String> {
        let failing = self.phase != InstancePhase::Healthy;
        self.last_failure.clone().filter(|_| failing)
    }

    /// Looks at once, whatever the interval: the state of an adopted container is not known.
    pub async fn look_now(&mut self) {
        if let Some((health, address)) = self.check.clone() {
            match look(&health, address).await {
                Ok(()) => self.succeeded(&health),
                Err(failure) => {
                    self.phase = InstancePhase::Unhealthy;
                    self.failed(&health, failure);
                }
            }
        }
    }

    /// Waits for the time of the next look, looks, and judges. Cancel safe: a look that is
    /// cancelled is simply made again.
    pub async fn next(&mut self) -> Verdict {
        let Some((health, address)) = self.check.clone() else {
            return std::future::pending().await;
        };
        sleep_until(self.next_at).await;
        match look(&health, address).await {
            Ok(()) => {
                self.succeeded(&health);
                Verdict::GoOn
            }
            Err(failure) => self.failed(&health, failure),
        }
    }

    fn succeeded(&mut self, health: &Health) {
        self.phase = InstancePhase::Healthy;
        self.failures = 0;
        self.last_failure = None;
        self.next_at = Instant::now() + health.interval.0;
    }

    fn failed(&mut self, health: &Health, failure: String) -> Verdict {
        let now = Instant::now();
        let verdict = if self.phase == InstancePhase::Starting {
            self.next_at = now + self.wait;
            self.wait = (self.wait * 3 / 2).min(STARTING_WAIT.1);
            if now >= self.deadline {
                Verdict::GiveUp(format!("not ready within {}: {failure}", health.start_deadline))
            } else {
                Verdict::GoOn
            }
        } else {
            self.failures += 1;
            self.next_at = now + health.interval.0;
            if self.failures >= health.failures {
                self.phase = InstancePhase::Unhealthy;
            }
            if self.failures >= health.failures.saturating_mul(2) {
                Verdict::GiveUp(format!("{} failures in a row: {failure}", self.failures))
            } else {
                Verdict::GoOn
            }
        };
        self.last_failure = Some(format!("health check: {failure}"));
        verdict
    }
}

/// One try.
async fn look(health: &Health, address: SocketAddr) -> Result<(), String> {
    let attempt = async {
        match &health.kind {
            HealthKind::Tcp => {
                TcpStream::connect(address).await.map(drop).map_err(|e| e.to_string())
            }
            HealthKind::Http { path } => get(address, path).await,
        }
    };
    match timeout(health.timeout.0, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer on port {} within {}", health.port, health.timeout)),
    }
}

/// `GET path`; a status from 200 to 399 is well.
async fn get(address: SocketAddr, path: &str) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(text)?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| format!("no HTTP: {error}"))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::USER_AGENT, "longshore-health")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| format!("the path cannot be asked for: {error}"))?;
    // The connection does the work of the request; both end here together.
    let answer = async { sender.send_request(request).await };
    tokio::pin!(answer);
    tokio::pin!(connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let status = answer.map_err(|error| format!("no HTTP answer: {error}"))?.status();
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("GET {path} answered {status}"))
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::{Duration as Span, Port};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn health(kind: HealthKind, port: u16) -> Health {
        Health { kind, failures: 2, ..Health::tcp(Port::new(port).unwrap()) }
    }

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    const LOCALHOST: Option<Ipv4Addr> = Some(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn an_http_check_goes_by_the_status() {
        let http = || HealthKind::Http { path: "/up".to_owned() };
        for (answer, phase) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", InstancePhase::Healthy),
            ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", InstancePhase::Healthy),
            ("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", InstancePhase::Starting),
            ("nonsense\r\n\r\n", InstancePhase::Starting),
        ] {
            let port = server(answer).await;
            let mut pulse = Pulse::new(Some(health(http(), port)), LOCALHOST, false);
            assert_eq!(pulse.next().await, Verdict::GoOn);
            assert_eq!(pulse.phase(), phase, "{answer:?} {:?}", pulse.note());
        }
    }

    #[tokio::test]
    async fn a_start_that_takes_too_long_is_given_up() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut health = health(HealthKind::Tcp, nobody);
        health.start_deadline = Span::from_millis(30);
        let mut pulse = Pulse::new(Some(health), LOCALHOST, false);
        let verdict = loop {
            match pulse.next().await {
                Verdict::GoOn => assert_eq!(pulse.phase(), InstancePhase::Starting),
                verdict => break verdict,
            }
        };
        let Verdict::GiveUp(why) = verdict else { panic!("must give up") };
        assert!(why.contains("not ready within 30ms"), "{why}");
    }

    #[tokio::test]
    async fn failures_in_a_row_make_it_unhealthy_and_then_end_it() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut health = health(HealthKind::Tcp, nobody);
        health.interval = Span::from_millis(1);
        let mut pulse = Pulse::new(Some(health), LOCALHOST, true);
        let mut phases = Vec::new();
        while pulse.next().await == Verdict::GoOn {
            phases.push(pulse.phase());
        }
        let (healthy, unhealthy) = (InstancePhase::Healthy, InstancePhase::Unhealthy);
        assert_eq!(phases, [healthy, unhealthy, unhealthy]);
    }

    #[tokio::test]
    async fn without_a_check_running_is_healthy() {
        let pulse = Pulse::new(None, LOCALHOST, false);
        assert_eq!(pulse.phase(), InstancePhase::Healthy);
    }
}
