//! A process that pulls is killed at many moments; what it leaves must be harmless.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

/// Names the store's directory to the process that is to be killed.
const STORE: &str = "LONGSHORE_TEST_KILLED_STORE";

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

/// Not a test by itself: the process that `killed_pulls_leave_nothing` starts and kills. It tells each
/// step on its output, and waits for the reader after each.
#[tokio::test]
async fn process_to_be_killed() {
    let Some(root) = std::env::var_os(STORE) else { return };
    let store = open(Path::new(&root));
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let say = |event| {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "event {event:?}").and_then(|()| stdout.flush()).unwrap();
    };
    store.pull(source, &repository(), &digest, &say).await.unwrap();
    println!("event done");
}

/// Runs the process until it has told so many steps, and kills it. False when it was done before.
fn run_and_kill(root: &Path, n_events: usize) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull::tests::crash::process_to_be_killed", "--nocapture"])
        .env(STORE, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let lines = output.lines().map_while(Result::ok);
    let told: Vec<String> = lines.filter(|line| line.contains("event ")).take(n_events).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!told.is_empty());
    told.len() == n_events && !told.iter().any(|line| line.contains("event done"))
}

#[tokio::test]
async fn killed_pulls_leave_nothing() {
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let mut n_events = 1;
    let mut n_kills = 0;
    loop {
        let root = tempfile::tempdir().unwrap();
        let was_killed = run_and_kill(root.path(), n_events);
        let store = open(root.path());
        assert_no_leftovers(root.path());
        let (image, report) = pull(&store, &source, &digest).await.unwrap();
        assert_eq!(image.layers.len(), 6, "five layers and the attributes of a directory");
        assert!(report.layers > report.reused_layers || store.image(&digest).is_some());
        let files = crate::unpack::tests::listing::list(&image.layers[4]);
        assert_eq!(files.len(), 1 + 1 + 1 + 20);
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
