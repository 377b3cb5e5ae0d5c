//! A process dies at each of its steps, of itself, and the power is cut there as well.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;

use longshore_loop::power::Disk;

use super::work::{End, Scene, Work};
use super::{is_long_run, random};
use crate::converted::FRAME;
use crate::mount::tests::{Scratch, wait_for_loop_devices_to_go};
use crate::steps::Step;
use crate::steps::tests::{VARIABLE, by_name};

use super::super::full::SmallDisk;
use super::super::*;

/// In a long run, at which of the times that a step is reached a process dies: at so many.
const TIMES: usize = 8;

/// From when on no frame of a converted layer comes again.
const FRAMES_ARE_THERE: [Step; 9] = [
    Step::FramesSynced,
    Step::FramesLinked,
    Step::StagedFileWritten,
    Step::StagedFileSynced,
    Step::StagedSynced,
    Step::Named,
    Step::NameSynced,
    Step::FramesUnlinked,
    Step::MetadataSynced,
];

/// A store on a disk whose power can be cut.
struct Place {
    // Before the directories that it lies and is mounted in.
    disk: Disk,
    scratch: Scratch,
    /// In memory, which waits for no disk of this machine.
    memory: SmallDisk,
}

impl Place {
    fn new() -> Self {
        let (scratch, memory) = (Scratch::new(), SmallDisk::new());
        let (file, at) = (memory.path().join("disk"), scratch.path().join("mounted"));
        let disk = Disk::make(&file, &at, 64).unwrap();
        Self { disk, scratch, memory }
    }

    fn store(&self) -> PathBuf {
        self.disk.path().join("store")
    }

    /// What is there of the store when the power is cut now.
    fn after_a_power_cut(&self) -> (Disk, PathBuf) {
        let (file, at) = (self.memory.path().join("copy"), self.scratch.path().join("copied"));
        let disk = self.disk.after_a_power_cut(&file, &at).unwrap();
        let store = disk.path().join("store");
        (disk, store)
    }

    /// No device outlives it.
    fn end(self) {
        drop(self.disk);
        wait_for_loop_devices_to_go(self.scratch.path());
        wait_for_loop_devices_to_go(self.memory.path());
    }
}

/// Does the work in a process that tells its steps, and cuts the power once it has ended: what was
/// said to be done is there. Gives how often each step was reached.
async fn steps_of(scene: &Scene) -> BTreeMap<Step, usize> {
    let place = Place::new();
    scene.prepare(&place.store()).await;
    let output = scene.command(&place.store()).env(VARIABLE, "tell").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let (after, root) = place.after_a_power_cut();
    let store = scene.open(&root, "after its end");
    assert!(store.image(scene.lasting()).is_some(), "{:?} is not kept", scene.work);
    scene.finish(store, End::PowerCut, "after its end").await;
    drop(after);
    place.end();
    let mut steps = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some((_, name)) = line.split_once("step ") {
            *steps.entry(by_name(name)).or_default() += 1;
        }
    }
    steps
}

/// What a sync was waited for is on the disk, so often as it was.
fn assert_synced(root: &Path, step: Step, nth: usize, when: &str) {
    let n_names = |directories: &[&str]| -> usize {
        directories.iter().map(|directory| entries(root, directory).len()).sum()
    };
    let is_there = match step {
        Step::NameSynced => n_names(&["layers", "indexed", "attributes"]) >= nth,
        Step::FileNameSynced => n_names(&["metadata", "images"]) >= nth,
        Step::RecordsSynced => n_names(&["images"]) == 1,
        _ => true,
    };
    assert!(is_there, "{when}: it was not synced");
}

/// Has a process die at a step.
async fn die(scene: &Scene, step: Step, nth: usize) {
    let place = Place::new();
    scene.prepare(&place.store()).await;
    let when = format!("{:?}, killed at {step:?} {nth}", scene.work);
    let mut command = scene.command(&place.store());
    let output = command.env(VARIABLE, format!("die {step:?} {nth}")).output().unwrap();
    // What happens at once may happen a different number of times.
    let has_died = output.status.signal() == Some(libc::SIGKILL);
    assert!(has_died || nth > 1 && output.status.success(), "{when}: {output:?}");

    let (after, root) = place.after_a_power_cut();
    let cut = format!("{when}, the power cut");
    if has_died {
        assert_synced(&root, step, nth, &cut);
    }
    scene.finish(scene.open(&root, &cut), End::PowerCut, &cut).await;
    drop(after);
    let root = place.store();
    let n_bytes = scene.finish(scene.open(&root, &when), End::Killed, &when).await;
    let are_there = scene.work == Work::LargeConverted && FRAMES_ARE_THERE.contains(&step);
    assert!(!are_there || n_bytes < FRAME as u64, "{when}: {n_bytes} bytes came again");
    place.end();
}

async fn die_at_every_step(work: Work) {
    let scene = Scene::new(work).await;
    let mut random = random();
    for (step, n_times) in steps_of(&scene).await {
        let mut times: Vec<usize> = (1..=n_times).collect();
        random.shuffle(&mut times);
        times.truncate(if is_long_run() { TIMES } else { 1 });
        for nth in times {
            die(&scene, step, nth).await;
        }
    }
}

#[tokio::test]
async fn a_pull_into_directories_may_die_at_every_step() {
    die_at_every_step(Work::Directories).await;
}

#[tokio::test]
async fn a_pull_may_die_at_every_step() {
    die_at_every_step(Work::Mounted).await;
}

#[tokio::test]
async fn a_pull_of_what_is_converted_may_die_at_every_step() {
    die_at_every_step(Work::Converted).await;
    die_at_every_step(Work::LargeConverted).await;
}

#[tokio::test]
async fn a_pull_that_was_given_up_may_die_at_every_step() {
    die_at_every_step(Work::Wished).await;
}

#[tokio::test]
async fn a_removal_may_die_at_every_step() {
    die_at_every_step(Work::Collect).await;
}

#[tokio::test]
async fn every_step_is_one_at_which_something_dies() {
    let mut missing: BTreeSet<Step> = Step::ALL.iter().copied().collect();
    for work in Work::ALL {
        for step in steps_of(&Scene::new(work).await).await.keys() {
            missing.remove(step);
        }
    }
    assert_eq!(missing, BTreeSet::new(), "no test reaches these");
}

/// Whether a disk forgot what was not synced, and kept what was.
fn forgets() -> bool {
    let place = Place::new();
    let write = |name: &str| {
        let path = place.disk.path().join(name);
        std::fs::write(&path, [7; 9000]).unwrap();
        std::fs::File::open(path).unwrap()
    };
    write("synced").sync_all().unwrap();
    write("unsynced");
    let renamed = write("before");
    renamed.sync_all().unwrap();
    std::fs::rename(place.disk.path().join("before"), place.disk.path().join("after")).unwrap();
    drop(renamed);
    let (after, _) = place.after_a_power_cut();
    let read = |name: &str| std::fs::read(after.path().join(name)).ok();
    let [synced, unsynced, old, new] = ["synced", "unsynced", "before", "after"].map(read);
    let whole = Some(vec![7; 9000]);
    assert!(synced == whole && (old == whole || new == whole), "what was synced is gone");
    drop(after);
    place.end();
    // Its name came along with what was synced behind it.
    unsynced != whole && new.is_none()
}

/// What the others count on.
#[test]
fn a_power_cut_takes_what_was_not_synced() {
    // Somebody may have just then everything on the machine synced.
    assert!((0..5).any(|_| forgets()), "the disk has what nobody synced");
}
