//! A process is killed at random moments, one time after the other.

use std::io::{BufRead, BufReader};

use super::work::{End, Scene, Work};
use super::{n_kills, random};

use super::super::*;

/// Kills a process a moment after it has told so many steps of its work.
fn kill_within(scene: &Scene, root: &Path, n_events: usize, moment: Duration) {
    let mut child = scene.command(root).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let lines = output.lines().map_while(Result::ok);
    // Keeps the pipe open: the process must die by the kill.
    let mut told = lines.filter(|line| line.contains("event ")).take(n_events);
    assert!(told.by_ref().count() > 0);
    // The kill is what is waited for: it shall come anywhere between two steps.
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// How many steps are told of a whole work.
async fn n_events(scene: &Scene) -> usize {
    let root = tempfile::tempdir().unwrap();
    scene.prepare(root.path()).await;
    let output = scene.command(root.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().matches("event ").count()
}

#[tokio::test]
async fn random_kills_leave_whole_layers_or_none() {
    let mut random = random();
    let (mut n_done, mut n_killed) = (0, 0);
    for work in Work::ALL {
        let scene = Scene::new(work).await;
        let n_events = n_events(&scene).await;
        let new_root = || tempfile::tempdir().unwrap();
        let mut root = new_root();
        scene.prepare(root.path()).await;
        for n in 0..n_kills() {
            let moment = Duration::from_micros(random.u64(..3000));
            kill_within(&scene, root.path(), 1 + random.usize(..n_events), moment);
            // Of a removal nobody can say whether it had ended.
            n_killed += usize::from(work != Work::Collect);
            let when = format!("{work:?}, kill {n}");
            let store = scene.open(root.path(), &when);
            let is_done = work != Work::Collect && store.image(scene.lasting()).is_some();
            n_done += usize::from(is_done);
            // Now and then what was left is finished, or it is gone on from there.
            if is_done || work == Work::Collect || random.u8(..3) == 0 {
                scene.finish(store, End::Killed, &when).await;
                root = new_root();
                scene.prepare(root.path()).await;
            }
        }
    }
    println!("{n_done} of {n_killed} kills of pulls came after the end");
    assert!(n_done < n_killed, "all came too late");
}
