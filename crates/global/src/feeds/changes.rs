//! What differs between two states of a project.

use std::collections::BTreeMap;

use longshore_api::v1::{ProjectChange, ProjectView};

/// What a watcher has to be told who has `before` to get to `after`.
pub fn change_between(before: &ProjectView, after: &ProjectView) -> ProjectChange {
    let (apps, apps_gone) = differing(&before.apps, &after.apps, |app| &app.app);
    let (instances, instances_gone) =
        differing(&before.instances, &after.instances, |instance| instance.id());
    ProjectChange { apps, instances, apps_gone, instances_gone }
}

/// What is new or differs, and the keys of what is gone.
fn differing<'a, T: Clone + PartialEq, K: Ord + Clone + 'a>(
    before: &'a [T],
    after: &'a [T],
    key: impl Fn(&'a T) -> &'a K,
) -> (Vec<T>, Vec<K>) {
    let mut left: BTreeMap<&K, &T> = before.iter().map(|item| (key(item), item)).collect();
    let mut changed = Vec::new();
    for item in after {
        if left.remove(key(item)) != Some(item) {
            changed.push(item.clone());
        }
    }
    (changed, left.into_keys().cloned().collect())
}
