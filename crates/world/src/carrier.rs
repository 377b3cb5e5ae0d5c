//! The thread that moves packets between the links of machines, as the wire says.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::machine::Subnet;
use crate::tun;
use crate::wire::Wire;

/// So many packets are read from one machine before the next has its turn.
const TURN: usize = 64;

/// How much was carried since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Reads and writes of packets, of which one may be what the kernel would have cut into many.
    pub n_frames: u64,
    /// Their bytes.
    pub n_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    n_frames: AtomicU64,
    n_bytes: AtomicU64,
}

/// Moves packets for as long as it lives.
#[derive(Debug)]
pub struct Carrier {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<Counters>,
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has.
struct Loop {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<Counters>,
    end: Arc<OwnedFd>,
    /// By machine.
    links: Vec<OwnedFd>,
    /// By machine.
    addresses: Vec<Ipv4Addr>,
    began: Instant,
}

impl Carrier {
    /// Starts to move packets between these links, one for each machine of the wire, in its order.
    pub fn start(wire: Wire, subnet: &Subnet, links: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let links: Vec<OwnedFd> =
            links.iter().map(|link| link.try_clone_to_owned()).collect::<io::Result<_>>()?;
        let addresses = (0..links.len()).map(|machine| subnet.address(machine)).collect();
        let wire = Arc::new(Mutex::new(wire));
        let counters = Arc::<Counters>::default();
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let body = Loop {
            wire: Arc::clone(&wire),
            counters: Arc::clone(&counters),
            end: Arc::clone(&end),
            links,
            addresses,
            began: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("wire".to_owned());
        let thread = Some(thread.spawn(move || body.run())?);
        Ok(Self { wire, counters, end, thread })
    }

    /// The wire, to look at or to change. Nothing moves meanwhile.
    pub fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much was carried so far.
    pub fn tally(&self) -> Tally {
        let Counters { n_frames, n_bytes } = &*self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally { n_frames: read(n_frames), n_bytes: read(n_bytes) }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // Writing to it cannot fail short of 2^64 times.
        let _ = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It panicked or it did not; either way nothing moves any more.
            let _ = thread.join();
        }
    }
}

impl Loop {
    fn run(self) {
        let mut buffer = vec![0; tun::LONGEST];
        loop {
            match self.wait() {
                Some(ready) => ready.into_iter().for_each(|from| self.read(from, &mut buffer)),
                None => return,
            }
            self.deliver();
        }
    }

    /// Waits until a machine has sent something or a packet's time has come, and gives the machines that
    /// have; none when this is to end.
    fn wait(&self) -> Option<Vec<usize>> {
        let fds = std::iter::once(self.end.as_fd()).chain(self.links.iter().map(OwnedFd::as_fd));
        let mut fds: Vec<PollFd<'_>> =
            fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let due = self.wire().next_due();
        let timeout = due.map(|due| in_spec(due.saturating_sub(self.began.elapsed())));
        // A signal in between is a look too many.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        if ready.next() == Some(true) {
            return None;
        }
        let machines = ready.enumerate().filter(|(_, is_ready)| *is_ready);
        Some(machines.map(|(machine, _)| machine).collect())
    }

    /// Takes what a machine has sent.
    fn read(&self, from: usize, buffer: &mut [u8]) {
        let mut wire = self.wire();
        for _ in 0..TURN {
            let Ok(length) = rustix::io::read(&self.links[from], &mut *buffer) else { return };
            let frame = &buffer[..length];
            let to = tun::destination(frame)
                .and_then(|to| self.addresses.iter().position(|address| *address == to));
            // What is for nobody here is as lost as with a router that knows no way.
            let Some(to) = to else { continue };
            self.count(length);
            wire.offer(self.began.elapsed(), from, to, frame.to_vec());
        }
    }

    /// Hands over what has arrived.
    fn deliver(&self) {
        let now = self.began.elapsed();
        let mut wire = self.wire();
        while let Some((to, frame)) = wire.take_due(now) {
            self.count(frame.len());
            // A link that takes no more loses it, as a full one does.
            let _ = rustix::io::write(&self.links[to], &frame);
        }
    }

    fn count(&self, length: usize) {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        self.counters.n_frames.fetch_add(1, Ordering::Relaxed);
        self.counters.n_bytes.fetch_add(length, Ordering::Relaxed);
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_spec(span: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: span.subsec_nanos().into(),
    }
}
