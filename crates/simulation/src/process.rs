//! Processes: tasks that are run in an order which follows from the seed, with a clock of their own, that stand
//! still and die when the simulation says so.
//!
//! tokio gives the timers and the pause of the clock, but runs nothing: its order of waking is random by design, and
//! what it runs cannot be stopped from outside. A task is polled when it was woken, those of a process in the order
//! in which they began. Rejected: madsim, which wants the world compiled with a flag and patched crates; turmoil, whose
//! hosts are tokio runtimes with that random order, and whose network is one of sockets, where what matters here is
//! what becomes of a message.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use futures_util::future::BoxFuture;
use longshore_link::{Service, Spawner};
use longshore_types::Timestamp;
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;

/// More rounds than this without the clock moving are a loop that does not end.
const MOST_ROUNDS: u32 = 10_000;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
    waker: Waker,
}

impl Task {
    fn new(future: BoxFuture<'static, ()>) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        // tokio's fairness between tasks is none of ours.
        Self { future: Box::pin(unconstrained(future)), flag, waker }
    }
}

type Begun = Arc<Mutex<Vec<BoxFuture<'static, ()>>>>;

/// A process that runs.
pub struct Process {
    tasks: Vec<Task>,
    begun: Begun,
    /// How far its clock is ahead of the world's, in milliseconds.
    pub ahead: i64,
    /// It stands still until then, by the world's clock in milliseconds.
    pub frozen_until: u64,
}

impl Process {
    /// A process whose clock is so far ahead.
    pub fn new(ahead: i64) -> Self {
        Self { tasks: Vec::new(), begun: Begun::default(), ahead, frozen_until: 0 }
    }

    /// Who owns the tasks of a role in it.
    pub fn service(&self) -> Service {
        let begun = Arc::clone(&self.begun);
        let spawner = Spawner::new(move |task| {
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        });
        Service::new(CancellationToken::new()).with_spawner(spawner)
    }

    /// Begins a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(task));
    }

    /// Runs what was woken once; false when nothing was.
    fn run_once(&mut self, now: u64) -> bool {
        let begun = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        self.tasks.extend(begun.into_iter().map(Task::new));
        longshore_link::simulate(Some(Timestamp(now.saturating_add_signed(self.ahead))));
        let mut ran = false;
        self.tasks.retain_mut(|task| {
            if !task.flag.0.swap(false, Ordering::Relaxed) {
                return true;
            }
            ran = true;
            let mut context = Context::from_waker(&task.waker);
            task.future.as_mut().poll(&mut context).is_pending()
        });
        ran
    }
}

/// Runs all of them until each waits for the clock or for a message.
pub fn run<'a>(processes: impl Iterator<Item = &'a mut Process>, now: u64) {
    let mut processes: Vec<_> = processes.filter(|process| process.frozen_until <= now).collect();
    let mut n_rounds = 0;
    loop {
        let mut any = false;
        for process in &mut processes {
            any |= process.run_once(now);
        }
        if !any {
            break;
        }
        n_rounds += 1;
        assert!(n_rounds < MOST_ROUNDS, "at {now} ms something goes on without the clock");
    }
    longshore_link::simulate(None);
}
