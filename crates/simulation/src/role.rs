//! A role: a process that is started again when it has ended, with what it is reached by while it runs.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use longshore_link::Service;

use crate::process::Process;

/// How it stands with a life of a role.
enum Life<T> {
    Begins,
    Runs(T),
    Ended(String),
}

/// A role of which each life has a handle.
pub struct Role<T> {
    /// How it is called, for the trace.
    pub name: String,
    /// What runs; nothing between two lives.
    pub process: Option<Process>,
    life: Arc<Mutex<Life<T>>>,
    /// Raised at each start.
    pub n_lives: u64,
    /// When it is to be started again.
    pub starts_at: u64,
    /// How far its machine's clock is ahead, in milliseconds.
    pub ahead: i64,
}

impl<T: Clone + Send + 'static> Role<T> {
    /// A role that does not run yet.
    pub fn new(name: String) -> Self {
        let life = Arc::new(Mutex::new(Life::Begins));
        Self { name, process: None, life, n_lives: 0, starts_at: 0, ahead: 0 }
    }

    /// Starts it.
    pub fn start<E, F>(&mut self, begin: impl FnOnce(Service) -> F)
    where
        E: Display,
        F: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let process = Process::new(self.ahead);
        let service = process.service();
        let life = Arc::new(Mutex::new(Life::Begins));
        self.life = Arc::clone(&life);
        self.n_lives += 1;
        let begins = begin(service.clone());
        process.spawn(async move {
            let set = |now| *life.lock().unwrap_or_else(PoisonError::into_inner) = now;
            match begins.await {
                Ok(Some(handle)) => set(Life::Runs(handle)),
                Ok(None) => {}
                Err(error) => return set(Life::Ended(error.to_string())),
            }
            let ended = service.run().await;
            set(Life::Ended(ended.err().map_or_else(String::new, |error| error.to_string())));
        });
        self.process = Some(process);
    }

    /// It is gone, with all that it did not store.
    pub fn kill(&mut self, starts_at: u64) {
        self.process = None;
        self.starts_at = self.starts_at.max(starts_at);
    }

    /// It stands still, and goes on then as if nothing had been.
    pub fn freeze(&mut self, until: u64) {
        if let Some(process) = &mut self.process {
            process.frozen_until = process.frozen_until.max(until);
        }
    }

    /// Sets the clock of its machine.
    pub fn set_clock(&mut self, ahead: i64) {
        self.ahead = ahead;
        if let Some(process) = &mut self.process {
            process.ahead = ahead;
        }
    }

    /// Until when it stands still, where it does.
    pub fn frozen_until(&self, now: u64) -> Option<u64> {
        let process = self.process.as_ref()?;
        (process.frozen_until > now).then_some(process.frozen_until)
    }

    /// The handle while it runs, whether it stands still or not.
    pub fn handle(&self) -> Option<T> {
        self.process.as_ref()?;
        match &*self.life.lock().unwrap_or_else(PoisonError::into_inner) {
            Life::Runs(handle) => Some(handle.clone()),
            Life::Begins | Life::Ended(_) => None,
        }
    }

    /// The same unless it stands still.
    pub fn awake(&self, now: u64) -> Option<T> {
        if self.frozen_until(now).is_some() {
            return None;
        }
        self.handle()
    }

    /// Why it ended by itself, if it did.
    pub fn ended(&self) -> Option<String> {
        self.process.as_ref()?;
        match &*self.life.lock().unwrap_or_else(PoisonError::into_inner) {
            Life::Ended(why) => Some(why.clone()),
            Life::Begins | Life::Runs(_) => None,
        }
    }
}
