//! A process that pulls is killed at many moments; what it leaves must be harmless.

mod random;
mod steps;
mod work;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;
use forms::Seen;

/// Names the store's directory to the process that is to be killed.
const STORE: &str = "LONGSHORE_TEST_KILLED_STORE";
/// Is there when its layers are to be directories.
const DIRECTORIES: &str = "LONGSHORE_TEST_KILLED_DIRECTORIES";
/// Is there when it is to pull an image of one large layer.
const LARGE: &str = "LONGSHORE_TEST_KILLED_LARGE";
/// Is there when that image is converted.
const CONVERTED: &str = "LONGSHORE_TEST_KILLED_CONVERTED";
/// Each form of layers; nothing has to be mounted for it to be written.
const FORMS: [KernelPath; 2] = [KernelPath::Directories, KernelPath::Loop];

fn parts() -> ImageParts {
    let layer = |n: u8| {
        let base = Archive::default().file(format!("implied/{n}"), &[n; 50_000]);
        (0..20).fold(base, |archive, m| archive.file(format!("{n}-{m}"), &[m; 20_000]))
    };
    let described = crate::tar::tests::RawHeader::new(b'5', b"implied").mode(0o1777).clone();
    (0..4_u8)
        .fold(ImageParts::default().plain(Archive::default().raw(&described, b"")), |parts, n| {
            parts.plain(layer(n))
        })
}

/// Not a test by itself: the process that the tests of this module start and kill. It tells each
/// step on its output, and waits for the reader after each.
#[tokio::test]
async fn process_to_be_killed() {
    let Some(root) = std::env::var_os(STORE) else { return };
    let store =
        open_by(Path::new(&root), FORMS[usize::from(std::env::var_os(DIRECTORIES).is_none())]);
    let source = Arc::new(FakeSource::default());
    let parts = if std::env::var_os(LARGE).is_some() { kept::large() } else { parts() };
    let digest = parts.clone().publish(&source);
    if std::env::var_os(CONVERTED).is_some() {
        converted::convert(&parts, &source, &digest);
    }
    let say = |event| {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "event {event:?}").and_then(|()| stdout.flush()).unwrap();
    };
    store.pull(source, &repository(), &digest, &say).await.unwrap();
    println!("event done");
}

fn start(root: &Path, kernel: KernelPath) -> Child {
    command(root, kernel).spawn().unwrap()
}

fn command(root: &Path, kernel: KernelPath) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if kernel == KernelPath::Directories {
        command.env(DIRECTORIES, "");
    }
    command
        .args(["--exact", "pull::tests::crash::process_to_be_killed", "--nocapture"])
        .env(STORE, root)
        .stdout(Stdio::piped());
    command
}

/// Runs the process until it has told so many steps, and kills it. False when it was done before.
fn run_and_kill(root: &Path, kernel: KernelPath, n_events: usize) -> bool {
    let mut child = start(root, kernel);
    let output = BufReader::new(child.stdout.take().unwrap());
    let lines = output.lines().map_while(Result::ok);
    let told: Vec<String> = lines.filter(|line| line.contains("event ")).take(n_events).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!told.is_empty());
    told.len() == n_events && !told.iter().any(|line| line.contains("event done"))
}

/// `LONGSHORE_KILLS` says how often fault tests kill something; here a few are cheap. There are several
/// works of which each is killed.
fn n_kills() -> usize {
    let text = std::env::var("LONGSHORE_KILLS");
    text.map_or(5, |text| text.parse().expect("LONGSHORE_KILLS is a number"))
}

/// Whether what takes long is wanted.
fn is_long_run() -> bool {
    n_kills() >= 100
}

/// What chooses; `LONGSHORE_SEED` repeats it.
fn random() -> fastrand::Rng {
    let seed = std::env::var("LONGSHORE_SEED").map_or(1, |text| text.parse().unwrap());
    println!("repeat with LONGSHORE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[tokio::test]
async fn killed_pulls_leave_nothing() {
    for kernel in FORMS {
        kill_pulls(kernel).await;
    }
}

async fn kill_pulls(kernel: KernelPath) {
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let mut n_events = 1;
    let mut n_kills = 0;
    loop {
        let root = tempfile::tempdir().unwrap();
        let was_killed = run_and_kill(root.path(), kernel, n_events);
        let store = open_by(root.path(), kernel);
        assert_no_leftovers(root.path());
        let (image, report) = pull(&store, &source, &digest).await.unwrap();
        if kernel == KernelPath::Directories {
            assert_eq!(layers(&image).len(), 6, "five layers and the attributes of a directory");
        }
        assert!(report.layers > report.reused_layers || store.image(&digest).is_some());
        let files = Seen::of(&image).nodes;
        assert_eq!(files.len(), 1 + 1 + 4 * (1 + 20));
        assert_eq!(files[&b"implied"[..]].mode, 0o1777);
        assert!(files.values().all(|node| node.kind != '-' || node.size >= 20_000));
        assert_no_leftovers(root.path());
        if !was_killed {
            break;
        }
        n_kills += 1;
        n_events += 45;
    }
    assert!(n_kills >= 5, "{n_kills}");
}

#[tokio::test]
async fn what_came_before_a_kill_is_not_fetched_again() {
    let source = Arc::new(FakeSource::default());
    let parts = kept::large();
    let digest = parts.clone().publish(&source);
    for kernel in FORMS {
        let root = tempfile::tempdir().unwrap();
        let mut child = command(root.path(), kernel).env(LARGE, "").spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut told = output.lines().map_while(Result::ok).filter(|line| line.contains("event "));
        // More than what is kept then, and so much less than all that it waits for who reads.
        assert_eq!(told.by_ref().take(2300).count(), 2300);
        eventually(|| kept::n_kept(root.path()) >= kept::KEPT).await;
        child.kill().unwrap();
        child.wait().unwrap();
        drop(told);
        let n_kept = kept::n_kept(root.path());
        let store = open_by(root.path(), kernel);
        assert_no_leftovers(root.path());
        let (_, report) = pull(&store, &source, &digest).await.unwrap();
        assert_eq!((report.layers, report.reused_layers), (1, 0));
        assert_eq!(report.bytes_fetched.0, parts.blob_size(0) - n_kept);
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    }
}

#[tokio::test]
async fn frames_that_came_before_a_kill_are_not_fetched_again() {
    let source = Arc::new(FakeSource::default());
    let parts = kept::large();
    let digest = parts.clone().publish(&source);
    let [layer] = converted::convert(&parts, &source, &digest)[..] else { panic!("one layer") };
    let whole = layer.blobs().iter().map(|part| part.size.0).sum::<u64>();
    let root = tempfile::tempdir().unwrap();
    let mut command = command(root.path(), KernelPath::Loop);
    let mut child = command.env(LARGE, "").env(CONVERTED, "").spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut told = output.lines().map_while(Result::ok).filter(|line| line.contains("event "));
    // What was told of was dealt out; of it no more than the threads hold is not written.
    let n_told = told.by_ref().take(9).count();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(told);
    assert_eq!(n_told, 9);
    let store = open_by(root.path(), KernelPath::Loop);
    assert_no_leftovers(root.path());
    let (image, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!((report.converted_layers, report.why_plain.len()), (1, 0));
    assert!(report.bytes_fetched.0 < whole, "{report:?}");
    assert_eq!(Seen::of(&image).nodes[&b"a"[..]].size, 14 * super::super::fetch::PART);
    assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    assert_no_leftovers(root.path());
}
