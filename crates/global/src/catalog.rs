//! The mirror of the store in memory.
//!
//! One task lists the store once and then follows its watch; everything else reads the
//! [`Catalog`] it publishes. Whoever wrote waits for the mirror to reach the revision of the write
//! ([`Mirror::reached`]), so that it reads what it wrote.
//!
//! What changed last is kept by revision, so that whoever looked before need not look at everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use longshore_api::Problem;
use longshore_link::Service;
use longshore_store::world::World;
use longshore_store::{Event, KeyValue, Page, RecordError, Revision, Store, WatchBatch};
use longshore_types::{
    AppName, Cordon, Digest, Epoch, LocationName, NodeName, ProjectName, ReachAddress, Release,
    ReleaseNumber, SecretName, SecretVersion, SharedMap,
};
use tokio::sync::watch;

use crate::GlobalError;
use crate::events::EventLog;
use crate::records::{
    AllotmentRecord, AppRecord, CordonRecord, Key, LocationRecord, PrewarmRecord, RegistryRecord,
    ReleaseRecord, SecretRecord, TokenRecord, decode,
};

/// How many changes of apps are remembered.
const TOUCHED: usize = 32_768;

/// How many revisions are taken over before they are published.
const MOST_AT_ONCE: usize = 256;
/// How many letters of a name may be wrong for another one to be meant.
const MOST_SLIPS: usize = 2;

/// An app's owner and name.
pub type AppKey = (ProjectName, AppName);

/// A record and the revision of its last change.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// What is stored.
    pub record: T,
    /// When it last changed.
    pub revision: Revision,
}

/// Everything that is stored, as of one revision.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Everything up to this revision is in here.
    pub revision: Revision,
    pub apps: SharedMap<AppKey, Stored<AppRecord>>,
    pub releases: SharedMap<(ProjectName, AppName, ReleaseNumber), Arc<Release>>,
    pub releases_changed: Revision,
    /// Those of them that name something that has to answer, which are few.
    reaching: BTreeSet<(ProjectName, AppName, ReleaseNumber)>,
    /// What any app has to reach where it starts; found once for all locations that are told.
    pub reach: Arc<BTreeSet<ReachAddress>>,
    pub allotments: SharedMap<(LocationName, ProjectName, AppName), Stored<AllotmentRecord>>,
    /// Which locations were given something of an app.
    places: SharedMap<AppKey, Arc<BTreeSet<LocationName>>>,
    /// The apps by the changes of their records, releases and allotments, the newest of them.
    touched: SharedMap<(Revision, AppKey), ()>,
    /// All that changed later is in there.
    touched_since: Revision,
    /// The last change of anything else that may concern every app.
    pub rest_changed: Revision,
    /// The revision of the last change to any allotment of a location, or to what is wished of its
    /// nodes, since this process began, removals included.
    allotments_changed: SharedMap<LocationName, Revision>,
    /// The newest of those.
    any_changed: Revision,
    /// That of the whole when it was first read.
    began: Revision,
    pub secrets: SharedMap<(ProjectName, SecretName, SecretVersion), Stored<SecretRecord>>,
    pub tokens: BTreeMap<AppName, TokenRecord>,
    pub tokens_changed: Revision,
    pub locations: SharedMap<LocationName, LocationRecord>,
    /// The registry, when it joined from another machine.
    pub registry: Option<RegistryRecord>,
    /// What operators wish of locations, and of their nodes.
    pub cordons: BTreeMap<(LocationName, Option<NodeName>), Stored<CordonRecord>>,
    /// Which images should be on nodes.
    pub prewarms: BTreeMap<(ProjectName, Digest), PrewarmRecord>,
    pub prewarms_changed: Revision,
    /// Which strays are to be let go of where, and since which revision.
    pub let_go: BTreeMap<(LocationName, ProjectName, AppName), Revision>,
    /// Which life of the store this is.
    pub epoch: Epoch,
}

impl Catalog {
    /// What an operator wishes of a location.
    pub fn cordon(&self, location: &LocationName) -> Option<&Cordon> {
        self.cordons.get(&(location.clone(), None)).map(|stored| &stored.record.0)
    }

    /// What operators wish of the nodes of a location.
    pub fn node_cordons(
        &self,
        location: &LocationName,
    ) -> impl Iterator<Item = (&NodeName, &Cordon)> {
        let from = (location.clone(), None);
        let of_location = self.cordons.range(from..).take_while(move |((of, _), _)| of == location);
        of_location.filter_map(|((_, node), stored)| Some((node.as_ref()?, &stored.record.0)))
    }

    fn find_reach(&self) -> BTreeSet<ReachAddress> {
        let is_wanted = |(project, app, number): &&(ProjectName, AppName, ReleaseNumber)| {
            let stored = self.apps.get(&(project.clone(), app.clone()));
            stored.map(|stored| &stored.record).is_some_and(|record| {
                let wanted = [Some(record.release), record.beside];
                !record.removing && wanted.contains(&Some(*number))
            })
        };
        let releases =
            self.reaching.iter().filter(is_wanted).filter_map(|key| self.releases.get(key));
        releases.flat_map(|release| &release.manifest.placement.reach).cloned().collect()
    }

    /// The release that should run of an app.
    pub fn current_release(&self, app: &AppKey) -> Option<&Arc<Release>> {
        self.release(app, self.apps.get(app)?.record.release)
    }

    /// A release of an app.
    pub fn release(&self, app: &AppKey, number: ReleaseNumber) -> Option<&Arc<Release>> {
        self.releases
            .find(|(project, name, other)| (&app.0, &app.1, &number).cmp(&(project, name, other)))
    }

    /// What a location was given of an app.
    pub fn allotment(
        &self,
        location: &LocationName,
        (project, app): &AppKey,
    ) -> Option<&AllotmentRecord> {
        self.allotted_to(location, (project, app)).map(|stored| &stored.record)
    }

    /// The record of an app, or a problem that says that there is none.
    pub fn app(&self, key: &AppKey) -> Result<&Stored<AppRecord>, Problem> {
        self.apps.get(key).ok_or_else(|| self.no_app(key))
    }

    /// Says that there is no such app, and which name is nearest.
    pub fn no_app(&self, (project, name): &AppKey) -> Problem {
        let of_project = self.apps.keys().filter(|(owner, _)| owner == project);
        let distance = |app: &AppName| strsim::damerau_levenshtein(app.as_str(), name.as_str());
        let nearest = of_project.map(|(_, app)| (distance(app), app)).min();
        let mut problem = Problem::not_found("app", name);
        if let Some((_, app)) = nearest.filter(|(distance, _)| *distance <= MOST_SLIPS) {
            problem.detail.push_str(&format!("; did you mean {app}?"));
        }
        problem
    }

    /// The releases of an app, oldest first.
    pub fn releases_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<Release>> {
        let of = |(project, name, _): &(ProjectName, AppName, ReleaseNumber)| {
            (project, name).cmp(&(&app.0, &app.1))
        };
        let from = self.releases.iter_from(|key| of(key).is_lt());
        from.take_while(move |(key, _)| of(key).is_eq()).map(|(_, release)| release)
    }

    /// What each location was given of an app.
    pub fn held(
        &self,
        app: &AppKey,
    ) -> impl Iterator<Item = (&LocationName, &Stored<AllotmentRecord>)> {
        let places = self.places.get(app).into_iter().flat_map(|places| &**places);
        places.filter_map(move |at| Some((at, self.allotted_to(at, (&app.0, &app.1))?)))
    }

    fn allotted_to(
        &self,
        location: &LocationName,
        (project, app): (&ProjectName, &AppName),
    ) -> Option<&Stored<AllotmentRecord>> {
        self.allotments.find(|(at, owner, name)| (location, project, app).cmp(&(at, owner, name)))
    }

    /// What a location was given, by app.
    pub fn allotted(
        &self,
        location: &LocationName,
    ) -> impl Iterator<Item = (&ProjectName, &AppName, &Stored<AllotmentRecord>)> {
        let from = self.allotments.iter_from(|(of, _, _)| of < location);
        let of_location = from.take_while(move |((of, _, _), _)| of == location);
        of_location.map(|((_, project, app), stored)| (project, app, stored))
    }

    /// The changes of apps after a revision, an app that changed more than once again with each; nothing where that is
    /// too long ago to be known.
    pub fn touched_after(
        &self,
        revision: Revision,
    ) -> Option<impl Iterator<Item = (Revision, &AppKey)>> {
        let later = || self.touched.iter_from(move |(at, _)| *at <= revision);
        let each = || later().map(|((at, app), ())| (*at, app));
        (revision >= self.touched_since).then(each)
    }

    /// Remembers that something of an app changed.
    pub fn touch(&mut self, app: AppKey, revision: Revision) {
        self.touched.insert((revision, app), ());
        if self.touched.len() <= TOUCHED {
            return;
        }
        let oldest = self.touched.keys().next().cloned();
        if let Some(oldest) = oldest {
            self.touched.remove(&oldest);
            self.touched_since = self.touched_since.max(oldest.0);
        }
    }

    fn changed(&mut self, location: &LocationName, revision: Revision) {
        self.allotments_changed.insert(location.clone(), revision);
        self.any_changed = revision;
    }

    /// Where an app was given something, after that of one location was changed.
    fn place(&mut self, location: &LocationName, app: &AppKey) {
        let key = (location.clone(), app.0.clone(), app.1.clone());
        let is_there = self.allotments.contains_key(&key);
        let known = self.places.get(app);
        if known.is_some_and(|places| places.contains(location)) == is_there {
            return;
        }
        let mut places = known.map_or_else(BTreeSet::new, |places| places.as_ref().clone());
        match is_there {
            true => places.insert(location.clone()),
            false => places.remove(location),
        };
        match places.is_empty() {
            true => _ = self.places.remove(app),
            false => self.places.insert(app.clone(), Arc::new(places)),
        }
    }

    /// The revision of the last change to any allotment of a location, as far as that is known: one that was
    /// removed before this process began may have been this location's.
    pub fn changed_at(&self, location: &LocationName) -> Revision {
        self.allotments_changed.get(location).copied().unwrap_or(self.began)
    }

    /// The newest of those of all locations.
    pub fn any_changed_at(&self) -> Revision {
        self.any_changed.max(self.began)
    }

    fn put(&mut self, stored: &KeyValue) -> Result<(), RecordError> {
        let revision = stored.mod_revision;
        match Key::parse(&stored.key) {
            Some(Key::App(project, app)) => {
                self.touch((project.clone(), app.clone()), revision);
                self.apps.insert((project, app), Stored { record: decode(stored)?, revision });
            }
            Some(Key::Release(project, app, number)) => {
                let ReleaseRecord(release) = decode(stored)?;
                self.releases_changed = revision;
                if !release.manifest.placement.reach.is_empty() {
                    self.reaching.insert((project.clone(), app.clone(), number));
                }
                self.touch((project.clone(), app.clone()), revision);
                self.releases.insert((project, app, number), Arc::new(release));
            }
            Some(Key::Allotment(location, project, app)) => {
                self.changed(&location, revision);
                let key = (project.clone(), app.clone());
                let stored = Stored { record: decode(stored)?, revision };
                self.allotments.insert((location.clone(), project, app), stored);
                self.place(&location, &key);
                self.touch(key, revision);
            }
            Some(Key::Secret(project, name, version)) => {
                let stored = Stored { record: decode(stored)?, revision };
                self.secrets.insert((project, name, version), stored);
            }
            Some(Key::Token(name)) => {
                self.tokens_changed = revision;
                self.tokens.insert(name, decode(stored)?);
            }
            Some(Key::Location(name)) => {
                self.rest_changed = revision;
                self.locations.insert(name, decode(stored)?);
            }
            Some(Key::Cordon(location, node)) => {
                self.rest_changed = revision;
                if node.is_some() {
                    self.changed(&location, revision);
                }
                let stored = Stored { record: decode(stored)?, revision };
                self.cordons.insert((location, node), stored);
            }
            Some(Key::LetGo(location, project, app)) => {
                self.rest_changed = revision;
                self.changed(&location, revision);
                self.let_go.insert((location, project, app), revision);
            }
            Some(Key::Prewarm(project, image)) => {
                self.prewarms_changed = revision;
                self.prewarms.insert((project, image), decode(stored)?);
            }
            Some(Key::Registry) => self.registry = Some(decode(stored)?),
            Some(Key::World) => self.epoch = Epoch(decode::<World>(stored)?.epoch),
            // Kept in the log of the newest, and read from the store by those who need them.
            Some(Key::Event(..) | Key::Answer(..) | Key::JoinToken(_) | Key::Leader) => {}
            None => tracing::warn!(key = stored.key, "ignoring a stored key of an unknown kind"),
        }
        Ok(())
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        match Key::parse(key) {
            Some(Key::App(project, app)) => {
                let key = (project, app);
                self.apps.remove(&key);
                self.touch(key, revision);
            }
            Some(Key::Release(project, app, number)) => {
                self.releases_changed = revision;
                self.touch((project.clone(), app.clone()), revision);
                let key = (project, app, number);
                self.reaching.remove(&key);
                self.releases.remove(&key);
            }
            Some(Key::Allotment(location, project, app)) => {
                self.changed(&location, revision);
                let key = (project.clone(), app.clone());
                self.allotments.remove(&(location.clone(), project, app));
                self.place(&location, &key);
                self.touch(key, revision);
            }
            Some(Key::Secret(project, name, version)) => {
                self.secrets.remove(&(project, name, version));
            }
            Some(Key::Token(name)) => {
                self.tokens_changed = revision;
                self.tokens.remove(&name);
            }
            Some(Key::Location(name)) => {
                self.rest_changed = revision;
                self.locations.remove(&name);
            }
            Some(Key::Cordon(location, node)) => {
                self.rest_changed = revision;
                if node.is_some() {
                    self.changed(&location, revision);
                }
                self.cordons.remove(&(location, node));
            }
            Some(Key::LetGo(location, project, app)) => {
                self.rest_changed = revision;
                self.changed(&location, revision);
                self.let_go.remove(&(location, project, app));
            }
            Some(Key::Prewarm(project, image)) => {
                self.prewarms_changed = revision;
                self.prewarms.remove(&(project, image));
            }
            Some(Key::Registry) => self.registry = None,
            // A life of a store has no end that its control plane sees.
            Some(Key::World) => {}
            Some(Key::Event(..) | Key::Answer(..) | Key::JoinToken(_) | Key::Leader) | None => {}
        }
    }

    /// Takes over what one revision changed; gives the events among that.
    fn apply<'a>(&mut self, batch: &'a WatchBatch) -> Result<Vec<&'a KeyValue>, RecordError> {
        let mut events = Vec::new();
        for event in &batch.events {
            match event {
                Event::Put(stored) if is_event(stored) => events.push(stored),
                Event::Put(stored) => self.put(stored)?,
                Event::Delete { key, .. } => self.delete(key, batch.revision),
            }
        }
        self.revision = batch.revision;
        Ok(events)
    }
}

fn is_event(stored: &KeyValue) -> bool {
    matches!(Key::parse(&stored.key), Some(Key::Event(..)))
}

/// How long a change may take to be told by a store that is there.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

/// The published mirror.
#[derive(Debug, Clone)]
pub struct Mirror {
    catalog: watch::Receiver<Arc<Catalog>>,
}

impl Mirror {
    /// Reads the whole store, then follows it as a task of `service`. What is told of changes goes to
    /// `told`.
    pub async fn start(
        store: Arc<dyn Store>,
        told: EventLog,
        service: &Service,
    ) -> Result<Self, GlobalError> {
        let listing = store.list("/", Page::default()).await.map_err(GlobalError::Store)?;
        let mut catalog = Catalog { revision: listing.revision, ..Catalog::default() };
        for stored in &listing.items {
            catalog.put(stored)?;
        }
        catalog.began = listing.revision;
        catalog.reach = Arc::new(catalog.find_reach());
        catalog.allotments_changed = SharedMap::default();
        catalog.any_changed = listing.revision;
        // What was deleted before is told by nobody, and nobody asks for what was changed before.
        (catalog.touched, catalog.touched_since) = (SharedMap::default(), listing.revision);
        told.begin(listing.revision);
        catalog.tokens_changed = listing.revision;
        catalog.releases_changed = listing.revision;
        let mut events =
            store.watch("/", listing.revision.next()).await.map_err(GlobalError::Store)?;
        let (sender, receiver) = watch::channel(Arc::new(catalog));
        let shutdown = service.shutdown();
        service.spawn("mirror", async move {
            while let Some(Some(batch)) = shutdown.run_until_cancelled(events.next()).await {
                let mut catalog = Catalog::clone(&sender.borrow());
                // What came meanwhile is published together: each time, everyone looks.
                let mut batches = vec![batch.map_err(GlobalError::Store)?];
                while batches.len() < MOST_AT_ONCE
                    && let Some(Some(batch)) = events.next().now_or_never()
                {
                    batches.push(batch.map_err(GlobalError::Store)?);
                }
                let mut news = Vec::new();
                for batch in &batches {
                    news.push((batch.revision, catalog.apply(batch)?));
                }
                catalog.reach = Arc::new(catalog.find_reach());
                sender.send_replace(Arc::new(catalog));
                for (revision, events) in news {
                    told.push(revision, &events)?;
                }
            }
            Ok::<_, GlobalError>(())
        });
        Ok(Self { catalog: receiver })
    }

    /// The catalog now.
    pub fn now(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// Waits until everything up to `revision` is in the catalog, and gives that. In a store that
    /// others use too, the revision of a transaction that changed nothing may be of theirs, and is
    /// never told here: so this does not wait for ever, and then gives what there is.
    pub async fn reached(&self, revision: Revision) -> Arc<Catalog> {
        let mut catalog = self.catalog.clone();
        let reached = catalog.wait_for(|catalog| catalog.revision >= revision);
        match tokio::time::timeout(REACHED_WITHIN, reached).await {
            Ok(Ok(catalog)) => Arc::clone(&catalog),
            // Or the mirror ended because the service does; the last state is the best there is.
            Ok(Err(_)) | Err(_) => self.now(),
        }
    }
}
