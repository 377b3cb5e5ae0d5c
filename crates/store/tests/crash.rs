//! kill -9 at any moment loses nothing that was acknowledged and leaves nothing half done.
//!
//! The test runs itself as a child that commits and says what was acknowledged, kills the child
//! without warning, and opens what is left.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use longshore_store::{
    Event, OpenStoreError, Page, RedbOptions, RedbStore, Revision, Store, Transaction,
};

const STORE_VARIABLE: &str = "LONGSHORE_CRASH_TEST_STORE";
const CHILD_TEST: &str = "the_child_that_is_killed";
const SEED: u64 = 20;
const ROUNDS: usize = 12;
const WRITERS: u64 = 8;
const DEADLINE: Duration = Duration::from_secs(60);
/// Few, so that compaction is always under way when the kill comes.
const KEEP_REVISIONS: u64 = 2000;

fn open(path: &Path) -> RedbStore {
    let options = RedbOptions { keep_revisions: Some(KEEP_REVISIONS), ..RedbOptions::default() };
    RedbStore::open_with(path, &options).expect("what a kill leaves can be opened")
}

/// What the child said: this writer's commit of this number got this revision.
#[derive(Debug, Clone, Copy)]
struct Ack {
    writer: u64,
    number: u64,
    revision: Revision,
}

impl Ack {
    /// The line `ack WRITER NUMBER REVISION`; `None` for one that was cut or is not ours.
    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> =
            line.strip_prefix("ack ")?.split(' ').map_while(|n| n.parse().ok()).collect();
        let [writer, number, revision] = numbers[..] else { return None };
        Some(Self { writer, number, revision: Revision(revision) })
    }
}

/// Not a test by itself: without the variable there is nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_child_that_is_killed() {
    let Some(path) = std::env::var_os(STORE_VARIABLE) else { return };
    let store = open(Path::new(&path));
    println!("\nopen");
    let write = async |writer: u64| {
        let latest = format!("/latest/{writer}");
        let kv = store.get(&latest).await.unwrap();
        let mut number = kv.map_or(0, |kv| number_in(&kv.value));
        loop {
            number += 1;
            let transaction = Transaction::new()
                .put(format!("/all/{writer}/{number:08}"), vec![b'x'; 200])
                .put(&latest, number.to_string())
                .delete(format!("/all/{writer}/{:08}", number.saturating_sub(500)));
            let revision = store.commit(transaction).await.unwrap().revision;
            // One write, so that lines of several writers never mix.
            let line = format!("ack {writer} {number} {revision}\n");
            std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
    };
    futures_util::future::join_all((0..WRITERS).map(write)).await;
}

fn number_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).expect("numbers are text").parse().expect("the value is a number")
}

/// The child, killed at the latest when this is dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(path: &Path) -> Self {
        let itself = std::env::current_exe().expect("the test knows its own file");
        let mut child = Command::new(itself)
            .args([CHILD_TEST, "--exact", "--nocapture"])
            .env(STORE_VARIABLE, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test can run itself");
        let output = child.stdout.take().expect("the output was asked for");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits until the store is open.
    fn until_open(&self) {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect("the child opens the store");
            if line == "open" {
                return;
            }
        }
    }

    /// Kills the child after so long and returns everything that it said was done.
    fn kill_after(mut self, span: Duration) -> Vec<Ack> {
        let moment = Instant::now() + span;
        let mut acks = Vec::new();
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => acks.extend(Ack::parse(&line)),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("the child ended by itself"),
            }
            if left.is_zero() {
                break;
            }
        }
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
        acks.extend(self.lines.iter().filter_map(|line| Ack::parse(&line)));
        acks
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when the child is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut acknowledged = BTreeMap::new();
    let mut n_acks = 0;
    for round in 0..ROUNDS {
        let running = Running::start(&path);
        // Every third kill comes while the child starts: makes, opens or repairs the file.
        let span = if round % 3 == 0 {
            Duration::from_micros(random.u64(..40_000))
        } else {
            running.until_open();
            assert!(matches!(RedbStore::open(&path), Err(OpenStoreError::Held { .. })));
            Duration::from_micros(random.u64(..600_000))
        };
        let acks = running.kill_after(span);
        n_acks += acks.len();
        let store = open(&path);
        for ack in acks {
            check_acknowledged(&store, ack).await;
            acknowledged.insert(ack.writer, ack.number);
        }
        check_consistent(&store, &acknowledged).await;
    }
    assert!(n_acks > 0, "no round came as far as a commit");
}

/// The moments around the making of the file, each on a fresh one.
#[test]
fn kill_9_while_the_file_is_made_leaves_one_that_opens() {
    let mut random = fastrand::Rng::with_seed(SEED);
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        Running::start(&path).kill_after(Duration::from_micros(random.u64(..20_000)));
        drop(open(&path));
    }
}

async fn check_acknowledged(store: &RedbStore, ack: Ack) {
    let latest = store.get(&format!("/latest/{}", ack.writer)).await.expect("the store reads");
    let latest = number_in(&latest.expect("a latest number is stored").value);
    assert!(latest >= ack.number, "{ack:?} was lost");
    if latest < ack.number + 500 {
        let kv = store
            .get(&format!("/all/{}/{:08}", ack.writer, ack.number))
            .await
            .expect("the store reads");
        let kv = kv.unwrap_or_else(|| panic!("{ack:?} was lost"));
        assert_eq!(kv.mod_revision, ack.revision, "{ack:?}");
    }
}

/// Every transaction is there whole or not at all, and history has no gap.
async fn check_consistent(store: &RedbStore, acknowledged: &BTreeMap<u64, u64>) {
    let mut newest = Revision(0);
    for writer in 0..WRITERS {
        let latest = store.get(&format!("/latest/{writer}")).await.expect("the store reads");
        let last = latest.as_ref().map_or(0, |kv| number_in(&kv.value));
        let told = acknowledged.get(&writer).copied().unwrap_or(0);
        // A writer has one commit under way, of which it may not have told in each round.
        assert!((told..=told + ROUNDS as u64).contains(&last), "writer {writer}: {last}, {told}");
        let prefix = format!("/all/{writer}/");
        let listing = store.list(&prefix, Page::default()).await.expect("the store lists");
        newest = listing.revision;
        let stored: Vec<u64> =
            listing.items.iter().map(|kv| number_in(&kv.key.as_bytes()[prefix.len()..])).collect();
        let expected: Vec<u64> = (last.saturating_sub(499).max(1)..=last).collect();
        assert_eq!(stored, expected, "writer {writer}");
        let version = latest.map_or(0, |kv| kv.version);
        assert_eq!(version, last, "writer {writer} wrote its number once per commit");
    }
    let mut revision = Revision(newest.0.saturating_sub(KEEP_REVISIONS).max(1)).next();
    if newest < revision {
        return;
    }
    let mut watch = store.watch("/", revision).await.expect("the watch begins");
    loop {
        let batch = watch.next().await.expect("it goes on").expect("history is kept");
        assert_eq!(batch.revision, revision);
        let puts = batch.events.iter().filter(|event| matches!(event, Event::Put(_))).count();
        assert_eq!(puts, 2, "revision {revision} was torn");
        if revision == newest {
            return;
        }
        revision = revision.next();
    }
}
