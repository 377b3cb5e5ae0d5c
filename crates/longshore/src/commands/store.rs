//! `longshore store`

mod place;

use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use longshore_link::now;
use longshore_store::Store;
use longshore_store::backup::Backup;
use longshore_store::restore::contents;
use longshore_store::world::{Origin, World};
use longshore_types::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind, OrFail};
use crate::human;
use crate::output::{Format, Output, say};
use crate::store_tls::StoreTlsOptions;
use place::Place;

/// Back up, restore and move the state of the control plane
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Backup(BackupOptions),
    Restore(RestoreOptions),
    Migrate(MigrateOptions),
}

/// Write the state of the control plane to a file, of one moment
///
/// It is asked of the control plane that runs, unless a store is named. Keep the file as you keep the admin
/// token, and the file of the keys that seal secrets apart from it: neither is of use without the other.
#[derive(Debug, clap::Args)]
struct BackupOptions {
    /// The file, which only its owner will be able to read
    file: PathBuf,
    #[command(flatten)]
    named: NamedStore,
    #[command(flatten)]
    tls: StoreTlsOptions,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Fill an empty store from a backup
///
/// Instances go on meanwhile and after it. Start the control plane on the store then: what it says is taken
/// by locations as the newest word. Apps that came after the backup go on until they are deployed or removed.
#[derive(Debug, clap::Args)]
struct RestoreOptions {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    named: NamedStore,
    #[command(flatten)]
    tls: StoreTlsOptions,
    /// Write data as JSON; `longshore schema VERB` says of which shape
    #[arg(long)]
    json: bool,
}

/// Move the state of the control plane to another, empty store
///
/// End the control plane before, and nothing else, and start it on the other store after. The store that
/// it came from is left as it is; a control plane that is started on that again is refused by locations.
#[derive(Debug, clap::Args)]
struct MigrateOptions {
    /// Where the state is: an etcd, or the data directory of `up` or `global`
    #[arg(long, value_name = "STORE")]
    from: Place,
    /// Where it should be, likewise
    #[arg(long, value_name = "STORE")]
    to: Place,
    #[command(flatten)]
    tls: StoreTlsOptions,
    /// Write data as JSON; `longshore schema VERB` says of which shape
    #[arg(long)]
    json: bool,
}

/// A store that is used while its control plane is not.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct NamedStore {
    /// An etcd: http[s]://HOST:PORT[,http[s]://HOST:PORT ...][/PREFIX]
    #[arg(long, value_name = "STORE", value_parser = place::etcd)]
    store: Option<Place>,
    /// The data directory of `up` or `global`, which does not run
    #[arg(long, value_name = "DIR", value_parser = place::directory)]
    data_dir: Option<Place>,
}

impl NamedStore {
    fn place(self) -> Option<Place> {
        self.store.or(self.data_dir)
    }
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Done {
    /// Where the state is now: a file, or a store.
    to: String,
    /// How many keys.
    keys: usize,
    /// Which life of the store this is; each restore and migration begins one.
    epoch: u64,
    /// At which moment it was as it is, in milliseconds since 1970.
    taken_at: Timestamp,
}

/// What an operator has to know of a restored store.
const SINCE: &str = "What was changed after the backup is not in it. Tokens that were removed since open again \
                     what they opened. Apps that were deployed since go on until they are deployed or removed \
                     again; locations that joined since are not known, and go on by themselves until they \
                     join again.";

/// Carries the verb out.
pub async fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Backup(options) => backup(options).await,
        Verb::Restore(options) => restore(options).await,
        Verb::Migrate(options) => migrate(options).await,
    }
}

fn output(json: bool) -> Output {
    Output::new(if json { Format::Json } else { Format::Text })
}

async fn backup(options: BackupOptions) -> Result<(), Failure> {
    let BackupOptions { file, named, tls, connection } = options;
    let output = connection.output();
    let backup = match named.place() {
        Some(place) => take(place.open_existing(&tls).await?.as_ref(), &place).await?,
        None => {
            let bytes = connection.connect()?.api.back_up_store().await?;
            let collect = |mut all: Vec<u8>, piece: bytes::Bytes| async move {
                all.extend(piece);
                Ok(all)
            };
            let bytes = bytes.try_fold(Vec::new(), collect).await?;
            Backup::decode(&bytes).or_fail(Kind::Other, "cannot use what the control plane sent")?
        }
    };
    backup.write(&file).or_fail(Kind::Other, "no backup was made")?;
    let done = done(&backup, file.display(), backup.epoch);
    output.data(&done, |done| format!("backed up {}\n", told(done)))
}

async fn restore(options: RestoreOptions) -> Result<(), Failure> {
    let RestoreOptions { file, named, tls, json } = options;
    let place = named.place().ok_or_else(|| {
        Failure::new(Kind::Usage, "into which store? name it with --store or --data-dir")
    })?;
    let backup = read(&file)?;
    let epoch = fill((&place, &tls), &backup, Origin::Restored).await?;
    let done = done(&backup, &place, epoch);
    output(json).data(&done, |done| format!("restored {}\n", told(done)))?;
    say(SINCE);
    Ok(())
}

async fn migrate(options: MigrateOptions) -> Result<(), Failure> {
    let MigrateOptions { from, to, tls, json } = options;
    if from == to {
        return Err(Failure::new(Kind::Usage, "both stores are the same"));
    }
    let store = from.open_existing(&tls).await?;
    if let Some(runs) = place::held(store.as_ref()).await? {
        let message = format!("a control plane runs on {from}: it holds {runs}");
        let hint = "end it first; one that was killed is forgotten after some seconds";
        return Err(Failure::new(Kind::Other, message).hint(hint));
    }
    let backup = take(store.as_ref(), &from).await?;
    let epoch = fill((&to, &tls), &backup, Origin::Migrated).await?;
    let done = done(&backup, &to, epoch);
    output(json).data(&done, |done| format!("moved {}\n", told(done)))
}

fn read(file: &Path) -> Result<Backup, Failure> {
    Backup::read(file).or_fail(Kind::Invalid, "nothing was restored")
}

async fn take(store: &dyn Store, place: &Place) -> Result<Backup, Failure> {
    let taken = Backup::take(store, now().0).await;
    let backup = taken.or_fail(Kind::Unavailable, format!("cannot read {place}"))?;
    if backup.items.is_empty() {
        return Err(Failure::new(Kind::NotFound, format!("there is nothing in {place}")));
    }
    Ok(backup)
}

/// Fills an empty store; the epoch of its new life.
async fn fill(
    (place, tls): (&Place, &StoreTlsOptions),
    backup: &Backup,
    origin: Origin,
) -> Result<u64, Failure> {
    let store = place.open_or_make(tls).await?;
    let doing = || format!("cannot write {place}");
    // Before anything is written there; a store that is filled meanwhile is refused as well.
    if let Some(found) = contents(store.as_ref()).await.or_fail(Kind::Unavailable, doing())? {
        let message = format!("{place} is not empty: {found}; nothing was changed");
        let hint = "name an etcd's other prefix, or move store.redb and store.redb.journal away";
        return Err(Failure::new(Kind::Other, message).hint(hint));
    }
    let world = World::after(backup.epoch, origin, now().0);
    backup.restore(store.as_ref(), &world).await.or_fail(Kind::Unavailable, doing())?;
    Ok(world.epoch)
}

fn done(backup: &Backup, to: impl std::fmt::Display, epoch: u64) -> Done {
    let (to, keys) = (to.to_string(), backup.items.len());
    Done { to, keys, epoch, taken_at: Timestamp(backup.taken_at) }
}

fn told(done: &Done) -> String {
    let keys = human::count(done.keys, "key");
    format!("{keys} as of {} to {}", human::utc(done.taken_at), done.to)
}
