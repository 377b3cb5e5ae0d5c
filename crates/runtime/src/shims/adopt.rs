//! After a restart of the agent: finding out what every instance has come to.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::InstanceId;

use super::{AskShimError, Inner, Running, SettleError, Shims, load_spec, run_blocking};
use crate::failure::chain;
use crate::files::{self, FileProblem};
use crate::protocol::{Reply, Request};
use crate::record::ExitRecord;
use crate::spec::ContainerSpec;

/// How long a shim may take to answer: it may be in the middle of making its container.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// An instance of an earlier agent.
pub struct Adopted {
    /// What had been asked for.
    pub spec: ContainerSpec,
    /// What became of it.
    pub state: AdoptedState,
}

/// What became of an instance.
pub enum AdoptedState {
    /// It runs.
    Running(Running),
    /// It ended, as its shim recorded; or its shim was found dead (`shim died`), or the machine went
    /// down (`node restarted`), and that was recorded now.
    Ended(ExitRecord),
}

/// Why the instances of an earlier agent could not be found.
#[derive(Debug, thiserror::Error)]
#[error("listing the instances in {}", path.display())]
pub struct AdoptError {
    path: std::path::PathBuf,
    #[source]
    source: io::Error,
}

impl Shims {
    /// Finds every instance that an earlier agent with the same directories asked for. What is left
    /// of one without a spec is ended and removed. An instance that cannot be judged is logged and
    /// left out, so that one broken directory does not keep the others from being served.
    pub async fn adopt(&self) -> Result<Vec<Adopted>, AdoptError> {
        let inner = Arc::clone(&self.inner);
        let ids = run_blocking(move || inner.list()).await?;
        let mut adopted = Vec::new();
        for id in ids {
            match self.adopt_one(&id).await {
                Ok(found) => adopted.extend(found),
                Err(error) => {
                    tracing::error!(instance = %id, error = chain(&error), "could not adopt");
                }
            }
        }
        Ok(adopted)
    }

    async fn adopt_one(&self, id: &InstanceId) -> Result<Option<Adopted>, AskShimError> {
        let settle_failed = |source| AskShimError::Settle { id: id.clone(), source };
        let (inner, owned) = (Arc::clone(&self.inner), id.clone());
        let spec = run_blocking(move || load_spec(&inner, &owned)).await;
        let Some(spec) = spec.map_err(|error| settle_failed(error.into()))? else {
            let (inner, owned) = (Arc::clone(&self.inner), id.clone());
            run_blocking(move || inner.discard(&owned)).await.map_err(settle_failed)?;
            return Ok(None);
        };
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.inner.ask(id, Request::State).await {
                Ok(Reply::State { pid, started_at, .. }) => {
                    let inner = Arc::clone(&self.inner);
                    let (id, timings) = (id.clone(), Vec::new());
                    let (searched, owned) = (Arc::clone(&inner), id.clone());
                    let ended = run_blocking(move || searched.end_orphans(&owned)).await;
                    if let Err(error) = ended {
                        // They end with the container.
                        tracing::warn!(instance = %id, error = chain(&error), "looking for orphans");
                    }
                    let running = Running { inner, id, pid, started_at, timings };
                    return Ok(Some(Adopted { spec, state: AdoptedState::Running(running) }));
                }
                Ok(_) | Err(AskShimError::NotRunning(_)) => {}
                Err(error) => return Err(error),
            }
            let (inner, owned) = (Arc::clone(&self.inner), id.clone());
            let hung = Instant::now() > deadline;
            let settled = run_blocking(move || inner.settle_or_end(&owned, hung)).await;
            if let Some(record) = settled.map_err(settle_failed)? {
                return Ok(Some(Adopted { spec, state: AdoptedState::Ended(record) }));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

impl Inner {
    /// Every id that has a state directory, a run directory or a cgroup.
    fn list(&self) -> Result<BTreeSet<InstanceId>, AdoptError> {
        let mut ids = BTreeSet::new();
        for dir in [&self.config.state_dir, &self.config.run_dir] {
            let failed = |source| AdoptError { path: dir.clone(), source };
            for entry in fs::read_dir(dir).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                ids.extend(name.to_str().and_then(|name| name.parse().ok()));
            }
        }
        let names = self.cgroups.instances();
        let names = names.map_err(|source| AdoptError {
            path: self.config.cgroup_root.clone().into(),
            source,
        })?;
        ids.extend(names.iter().filter_map(|name| name.parse().ok()));
        Ok(ids)
    }

    /// Removes an instance that never had a spec: a start that was cut off before it began, or a
    /// removal before it was complete.
    fn discard(&self, id: &InstanceId) -> Result<(), SettleError> {
        let removed = self.remove(id);
        removed.map_err(|error| SettleError::Remove(Box::new(error)))?;
        let path = self.state_dir(id);
        files::remove_if_present(&path)
            .map_err(|source| SettleError::File(FileProblem::Write { path, source }))
    }

    /// Like `settle`, but a shim that lives and does not answer is ended first.
    fn settle_or_end(
        &self,
        id: &InstanceId,
        hung: bool,
    ) -> Result<Option<ExitRecord>, SettleError> {
        if hung {
            let removed = self.remove(id);
            removed.map_err(|error| SettleError::Remove(Box::new(error)))?;
        }
        self.settle(id)
    }
}
