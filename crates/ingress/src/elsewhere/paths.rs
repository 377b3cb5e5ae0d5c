//! By which path a location is reached: dialled, over connections that it opened to this one, or through a relay.
//!
//! Whether a location can be dialled from here nobody has to say: it is tried. The path that led there last is
//! taken first, and the others soon after while that is silent, for packets to a machine behind a NAT are dropped
//! without a word. A relay carries bytes between two ingresses that speak TLS with each other, so on each path the
//! same is said, with the same certificates, and what is above does not know by which it came.
//!
//! Rejected: to dial first and wait for the end of that, which costs the first request some seconds; a word of the
//! location itself, which cannot know who can dial it: others behind its own NAT can.

use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use longshore_api::links::Peering;
use longshore_types::LocationName;
use tokio::time::{Instant, sleep};

use super::way::{Way, ending};
use super::{Location, Others, lock, way_to};
use crate::gate::{Gates, Stream};
use crate::relay;

/// How long a path may be silent before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(300);

/// A path to a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    /// It is dialled.
    Direct,
    /// Over a connection that it opened to this one.
    Opened,
    /// Through the ingress of another location, to which it keeps connections open.
    Through(Box<Way>),
}

/// A path, and what is at its end.
type Led = (Path, Box<dyn Stream>);

/// What is known of the paths to a location.
#[derive(Debug)]
pub(super) struct Paths {
    /// The one that led there last.
    last: Option<Path>,
    /// How often one was looked for while none had led there.
    n_tries: usize,
    looked: Instant,
}

impl Paths {
    pub fn new(now: Instant) -> Self {
        Self { last: None, n_tries: 0, looked: now }
    }

    /// Puts first what led there last. Until something did, each try begins with another one, for all of them
    /// together may take longer than one may.
    fn order(&mut self, all: &mut Vec<Path>) {
        let known = self.last.as_ref().and_then(|last| all.iter().position(|path| path == last));
        match known {
            Some(idx) => {
                let last = all.remove(idx);
                all.insert(0, last);
            }
            None if !all.is_empty() => {
                let n_tries = self.n_tries % all.len();
                all.rotate_left(n_tries);
                self.n_tries = self.n_tries.wrapping_add(1);
            }
            None => {}
        }
    }
}

impl Location {
    /// Whether it was dialled when it was reached last.
    pub fn is_direct(&self) -> bool {
        lock(&self.paths).last == Some(Path::Direct)
    }

    /// The location through which it was reached last, itself where it had opened the connection; none where it was
    /// dialled, or not reached at all.
    pub fn relay(&self) -> Option<LocationName> {
        match lock(&self.paths).last.as_ref()? {
            Path::Direct => None,
            Path::Opened => Some(self.way.location.clone()),
            Path::Through(relay) => Some(relay.location.clone()),
        }
    }

    fn led(&self, path: Path) {
        let mut paths = lock(&self.paths);
        if paths.last.as_ref() != Some(&path) {
            let location = &self.way.location;
            tracing::info!(%location, ?path, "another location is reached by another path");
            paths.last = Some(path);
        }
        paths.n_tries = 0;
    }

    /// What goes over its relay goes on to its end, and what is new finds another path.
    pub fn leave_relay(&self) {
        lock(&self.paths).last = None;
        self.upstream.shared().abandon();
    }

    /// Looks, each time that `every` is over, whether a location that is reached otherwise can be dialled by now,
    /// within `limit`; if so, requests that come go that way.
    pub async fn look_directly(&self, own: &Gates, (every, limit): (Duration, Duration)) {
        let now = Instant::now();
        {
            let mut paths = lock(&self.paths);
            let is_other = matches!(paths.last, Some(Path::Opened | Path::Through(_)));
            if !is_other || self.way.address.is_none() || now < paths.looked + every {
                return;
            }
            paths.looked = now;
        }
        if let Ok(Ok(_)) = tokio::time::timeout(limit, self.way.dial(own)).await {
            self.led(Path::Direct);
            self.upstream.shared().abandon();
        }
    }
}

impl Others {
    /// Connects to a location, as an ingress of ours, by whichever path leads there. The caller limits the time.
    pub fn connect<'a>(
        &'a self,
        way: &'a Way,
        own: &'a Gates,
    ) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let mut all = self.paths(way);
            let location = self.location(&way.location);
            if let Some(location) = &location {
                lock(&location.paths).order(&mut all);
            }
            let (path, stream) = self.race(all, way, own).await?;
            if let Some(location) = location {
                location.led(path);
            }
            Ok(stream)
        })
    }

    /// The paths that there may be, relays that are near first.
    fn paths(&self, way: &Way) -> Vec<Path> {
        let mut all = Vec::new();
        if way.address.is_some() {
            all.push(Path::Direct);
        }
        if self.opened_by(&way.location).is_some_and(|(reverse, _)| reverse.is_open()) {
            all.push(Path::Opened);
        }
        let table = self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let peers = &table.known.peers;
        let named = peers.get(&way.location).map(|peering| &*peering.relays).unwrap_or_default();
        let named = named.iter().take(Peering::MOST_RELAYS).filter(|name| **name != way.location);
        let relays = named.filter_map(|name| way_to(name, peers.get(name)?));
        let mut relays: Vec<_> = relays.filter(|relay| relay.address.is_some()).collect();
        relays.sort_by_key(|relay| {
            let location = table.locations.get(&relay.location);
            location.and_then(|at| lock(&at.measure).round_trip()).unwrap_or(Duration::MAX)
        });
        all.extend(relays.into_iter().map(|relay| Path::Through(Box::new(relay))));
        all
    }

    /// Follows paths, each once those before it failed or were silent for a while, until one led there.
    async fn race(&self, all: Vec<Path>, way: &Way, own: &Gates) -> io::Result<Led> {
        let mut left = all.into_iter();
        let mut tries: FuturesUnordered<BoxFuture<'_, io::Result<Led>>> = FuturesUnordered::new();
        let mut failed = io::Error::other("there is no path to it");
        loop {
            let next = left.next();
            let may_come = left.len() > 0;
            match next {
                Some(path) => tries.push(Box::pin(self.follow(path, way, own))),
                None if tries.is_empty() => return Err(failed),
                None => {}
            }
            tokio::select! {
                Some(tried) = tries.next() => match tried {
                    Ok(led) => return Ok(led),
                    Err(error) => failed = error,
                },
                () = sleep(STAGGER), if may_come => {}
            }
        }
    }

    async fn follow(&self, path: Path, way: &Way, own: &Gates) -> io::Result<Led> {
        let stream = match &path {
            Path::Direct => way.dial(own).await?,
            Path::Opened => {
                let none = || io::Error::other("it is no location any more");
                let (reverse, _) = self.opened_by(&way.location).ok_or_else(none)?;
                way.meet(&own.own().await.ok_or_else(ending)?, reverse.take().await?).await?
            }
            Path::Through(relay) => {
                let carried = relay::carried(relay.dial(own).await?, &way.location).await?;
                way.meet(&own.own().await.ok_or_else(ending)?, carried).await?
            }
        };
        Ok((path, stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_led_there_is_first_and_until_then_each_has_its_turn() {
        let (direct, opened) = (Path::Direct, Path::Opened);
        let mut paths = Paths::new(Instant::now());
        let mut order = |last: Option<&Path>| {
            paths.last = last.cloned();
            let mut all = vec![direct.clone(), opened.clone()];
            paths.order(&mut all);
            all.remove(0)
        };
        assert_eq!(
            [order(None), order(None), order(None)],
            [Path::Direct, Path::Opened, Path::Direct]
        );
        assert_eq!(order(Some(&opened)), opened);
        // One that is none any more is forgotten.
        let mut paths = Paths { last: Some(opened), ..Paths::new(Instant::now()) };
        let mut all = vec![direct.clone()];
        paths.order(&mut all);
        assert_eq!(all, [direct]);
    }
}
