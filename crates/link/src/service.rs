//! The tasks of a role, ended together.

use std::fmt::{self, Display};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks may take to end after a shutdown was asked for, unless the service says otherwise.
const DRAIN: Duration = Duration::from_secs(10);

/// A task of a role failed, so the role ends; its supervisor starts it again.
#[derive(Debug, thiserror::Error)]
#[error("{task}: {message}")]
pub struct ServiceError {
    /// The name of the task.
    pub task: &'static str,
    /// The error with its causes.
    pub message: String,
}

/// Runs the tasks of a role, where that is not to be the runtime: a simulation runs those of all its processes in
/// an order that follows from its seed.
#[derive(Clone)]
pub struct Spawner(Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>);

impl Spawner {
    /// One that hands each task to `run`.
    pub fn new(run: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(run))
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

/// Owns the tasks of one role. When one fails or panics all are ended; nothing is left running
/// unowned.
#[derive(Debug, Clone)]
pub struct Service {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    failure: Arc<Mutex<Option<ServiceError>>>,
    drain: Duration,
    spawner: Option<Spawner>,
}

impl Service {
    /// A service that ends its tasks when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        let (tracker, failure) = (TaskTracker::new(), Arc::default());
        Self { tracker, shutdown, failure, drain: DRAIN, spawner: None }
    }

    /// The same with its tasks run by `spawner`.
    #[must_use]
    pub fn with_spawner(mut self, spawner: Spawner) -> Self {
        self.spawner = Some(spawner);
        self
    }

    /// The same with another time for its tasks to end in, where ending is work.
    #[must_use]
    pub fn with_drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Cancelled when the service should end.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task that watches [`Self::shutdown`] itself and whose failure ends the service.
    pub fn spawn<E: Display>(
        &self,
        task: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let service = self.clone();
        self.start(async move {
            // A panic must end the service too: a role never limps on half dead.
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            let message = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_panic) => "panicked".to_owned(),
            };
            service.fail(ServiceError { task, message });
        });
    }

    /// Starts a task that is simply dropped when the service ends, at whatever point it waits.
    pub fn spawn_until_shutdown(
        &self,
        task: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let shutdown = self.shutdown();
        self.spawn(task, async move {
            shutdown.run_until_cancelled(future).await;
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// Starts a task for one request, which is dropped when the service ends. A panic in it is a bug
    /// that is logged, and ends nothing but it.
    pub fn spawn_request(
        &self,
        task: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let shutdown = self.shutdown();
        self.start(async move {
            let future = AssertUnwindSafe(future).catch_unwind();
            if let Some(Err(_panic)) = shutdown.run_until_cancelled(future).await {
                tracing::error!(task, "a request panicked");
            }
        });
    }

    fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tracked = self.tracker.track_future(task);
        match &self.spawner {
            Some(Spawner(run)) => run(tracked.boxed()),
            None => drop(tokio::spawn(tracked)),
        }
    }

    fn fail(&self, error: ServiceError) {
        tracing::error!(
            task = error.task,
            error = error.message,
            "a task failed; ending the service"
        );
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.shutdown.cancel();
    }

    /// Waits until shutdown is asked for and all tasks have ended or the time for it is over.
    pub async fn run(self) -> Result<(), ServiceError> {
        self.shutdown.cancelled().await;
        self.tracker.close();
        if tokio::time::timeout(self.drain, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "tasks did not end in time; leaving them");
        }
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_task_ends_the_others_and_is_named() {
        let service = Service::new(CancellationToken::new());
        service.spawn_until_shutdown("waits", std::future::pending());
        service.spawn("breaks", async { Err("it broke") });
        let error = service.run().await.unwrap_err();
        assert_eq!(error.to_string(), "breaks: it broke");
    }

    #[tokio::test]
    async fn a_panic_in_a_request_ends_nothing_else() {
        let shutdown = CancellationToken::new();
        let service = Service::new(shutdown.clone());
        service.spawn_request("panics", async { panic!("on purpose") });
        service.spawn_request("waits", std::future::pending());
        tokio::task::yield_now().await;
        assert!(!shutdown.is_cancelled());
        shutdown.cancel();
        service.run().await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_the_service() {
        let service = Service::new(CancellationToken::new());
        service.spawn_until_shutdown("panics", async { panic!("on purpose") });
        assert_eq!(service.run().await.unwrap_err().to_string(), "panics: panicked");
    }
}
