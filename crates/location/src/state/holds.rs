//! What keeps images on a node when that makes room.

use std::collections::{BTreeMap, BTreeSet};

use longshore_api::links::{Allotment, ImageHolds};
use longshore_types::{Digest, HoldReason, ImageHold, NodeName, ReleaseNumber};

use super::{Moment, State};

impl State {
    /// What keeps these images on a node; nothing while it is not known what should be. What an app needs
    /// here it needs on every node: any may be the next that starts it.
    pub fn holds(&self, node: &NodeName, images: &[Digest], moment: Moment) -> Option<ImageHolds> {
        if !self.settled(moment) {
            return None;
        }
        let asked: BTreeSet<_> = images.iter().collect();
        let mut holds: BTreeMap<Digest, BTreeSet<ImageHold>> = BTreeMap::new();
        let mut keep = |image: &Digest, reason, by: &dyn Fn() -> String| {
            if asked.contains(image) {
                holds.entry(*image).or_default().insert(ImageHold { reason, by: by() });
            }
        };
        for allotment in self.allotments.values() {
            for release in allotment.releases() {
                let by = || named(allotment, release.number);
                keep(&release.image_digest, HoldReason::Release, &by);
            }
            if let Some(rollback) = allotment.rollback {
                let by = || named(allotment, rollback.release);
                keep(&rollback.image, HoldReason::Rollback, &by);
            }
        }
        for record in self.instances.on_node(node) {
            let by = || record.instance.to_string();
            keep(&record.release.image_digest, HoldReason::Instance, &by);
        }
        let holds = holds.into_iter().map(|(image, holds)| (image, holds.into_iter().collect()));
        Some(ImageHolds { holds: holds.collect() })
    }
}

fn named(allotment: &Allotment, release: ReleaseNumber) -> String {
    format!("{}/{} {release}", allotment.project(), allotment.app())
}
