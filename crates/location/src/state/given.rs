//! What follows from all allotments together, kept with each of their changes.
//!
//! With thousands of apps to look at all of them at each change would cost the square of their number.

use std::collections::BTreeMap;
use std::ops::Deref;

use longshore_api::links::Allotment;
use longshore_types::ReachAddress;

use super::AppKey;

/// The allotments by app.
#[derive(Debug, Default)]
pub struct Given {
    by_app: BTreeMap<AppKey, Allotment>,
    /// How many releases ask that an address answers.
    reach: BTreeMap<ReachAddress, usize>,
}

impl Given {
    /// Adds one, in the place of what the app had.
    pub fn insert(&mut self, allotment: Allotment) {
        let key = (allotment.project().clone(), allotment.app().clone());
        for address in reach(&allotment) {
            *self.reach.entry(address.clone()).or_default() += 1;
        }
        if let Some(before) = self.by_app.insert(key, allotment) {
            self.let_go(&before);
        }
    }

    /// Takes that of an app away.
    pub fn remove(&mut self, key: &AppKey) {
        if let Some(before) = self.by_app.remove(key) {
            self.let_go(&before);
        }
    }

    fn let_go(&mut self, allotment: &Allotment) {
        for address in reach(allotment) {
            if let Some(count) = self.reach.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.reach.remove(address);
                }
            }
        }
    }

    /// The addresses that have to answer for one of them.
    pub fn reach(&self) -> impl Iterator<Item = &ReachAddress> {
        self.reach.keys()
    }
}

fn reach(allotment: &Allotment) -> impl Iterator<Item = &ReachAddress> {
    allotment.releases().flat_map(|release| &release.manifest.placement.reach)
}

impl Deref for Given {
    type Target = BTreeMap<AppKey, Allotment>;
    fn deref(&self) -> &Self::Target {
        &self.by_app
    }
}

impl FromIterator<Allotment> for Given {
    fn from_iter<I: IntoIterator<Item = Allotment>>(allotments: I) -> Self {
        let mut given = Self::default();
        allotments.into_iter().for_each(|allotment| given.insert(allotment));
        given
    }
}
