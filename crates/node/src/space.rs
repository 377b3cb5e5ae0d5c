//! The disk: how much of it the node offers, and giving back what instances freed.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_disk::LayerUsage;
use longshore_types::{ByteCount, Capacity, InstanceId};
use tokio::sync::watch;

use crate::{Node, NodeError};

/// How often to look. A look costs a few system calls for each instance.
const INTERVAL: Duration = Duration::from_secs(30);
/// Kept back for images, stores and the system: a tenth of the file system, and no more than this.
const RESERVED: ByteCount = ByteCount::gib(4);
/// What is offered is told in steps of this, so that a few written bytes are no news.
const STEP: ByteCount = ByteCount::mib(64);
/// A layer that could give back less is left alone.
const LEAST_TRIM: ByteCount = ByteCount::mib(32);

/// What the data directory's file system offers to instances in all: what is free there, and what
/// their layers and logs take already, for that is part of what they were promised. They are those that
/// the agent has restored.
pub fn offered(node: &Node) -> Result<ByteCount, NodeError> {
    let dir = node.disk.instances();
    let taken: u64 = node.board.now().keys().map(|id| taken_by(node, id)).sum();
    let failed =
        |source| NodeError::Disk { doing: "ask for the room on", path: dir.to_owned(), source };
    let space = rustix::fs::statvfs(dir).map_err(|errno| failed(errno.into()))?;
    let total = ByteCount(space.f_blocks.saturating_mul(space.f_frsize));
    let free = ByteCount(space.f_bavail.saturating_mul(space.f_frsize));
    Ok(offer(total, free, ByteCount(taken)))
}

fn offer(total: ByteCount, free: ByteCount, taken: ByteCount) -> ByteCount {
    let reserved = (total.0 / 10).min(RESERVED.0);
    let offered = (free.0 + taken.0).saturating_sub(reserved);
    ByteCount(offered / STEP.0 * STEP.0)
}

fn taken_by(node: &Node, id: &InstanceId) -> u64 {
    let layer = usage(node, id).map_or(0, |usage| usage.allocated.0);
    layer + size_of_files(&node.shims.state_dir(id)).unwrap_or(0)
}

/// What the writable layer of an instance holds, if it has one now.
pub fn usage(node: &Node, id: &InstanceId) -> Option<LayerUsage> {
    node.layers.usage(&node.disk.instance(id)).unwrap_or_else(|error| {
        tracing::warn!(%id, error = &error as &dyn std::error::Error, "cannot measure a layer");
        None
    })
}

fn size_of_files(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// Keeps the offer up to date, and lets layers give back what was freed inside.
pub async fn keep(node: Arc<Node>, capacity: watch::Sender<Capacity>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let looker = Arc::clone(&node);
        match tokio::task::spawn_blocking(move || look(&looker)).await {
            Ok(Ok(disk)) => {
                capacity.send_if_modified(|capacity| {
                    let news = capacity.disk != disk;
                    capacity.disk = disk;
                    news
                });
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot look at the disk");
            }
            // Only a shutdown or a panic, which has been told, ends it early.
            Err(_) => return,
        }
    }
}

fn look(node: &Node) -> Result<ByteCount, NodeError> {
    for id in node.board.now().keys() {
        if usage(node, id).is_some_and(|usage| usage.to_give_back() >= LEAST_TRIM)
            && let Err(error) = node.layers.trim(&node.disk.instance(id))
        {
            tracing::warn!(%id, error = &error as &dyn std::error::Error, "cannot trim a layer");
        }
    }
    offered(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_kept_back_and_what_instances_hold_is_theirs() {
        let gib = ByteCount::gib;
        assert_eq!(offer(gib(100), gib(50), gib(0)), gib(46));
        assert_eq!(offer(gib(100), gib(40), gib(10)), gib(46));
        assert_eq!(offer(gib(10), gib(5), gib(0)), gib(4));
        assert_eq!(offer(gib(10), gib(0), ByteCount(5)), ByteCount(0));
        assert_eq!(offer(gib(10), ByteCount(gib(5).0 + 5), gib(0)), gib(4), "in steps");
    }
}
