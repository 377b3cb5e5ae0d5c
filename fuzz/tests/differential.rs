//! Archives that we accept mean the same to the `tar` crate, to Python and to GNU tar.

use fastrand::Rng;
use longshore_fuzz::archives;
use longshore_fuzz::mutate::mutate;
use longshore_fuzz::opinions::{
    Item, Opinion, Python, difference_of_gnu_tar, difference_of_python,
    difference_of_the_tar_crate, ours,
};
use longshore_fuzz::targets::by_name;
use longshore_fuzz::{cases, seed};

#[test]
fn other_readers_agree_on_what_we_accept() {
    let mut rng = Rng::with_seed(seed());
    let corpus = by_name("tar").unwrap().corpus();
    let mut whole_corpus = corpus.iter();
    let mut python = Python::start();
    let mut previous = archives::random(&mut rng);
    let (mut n_tried, mut n_accepted) = (0_u64, 0_u64);
    let mut differences = Vec::new();
    for _ in cases(3000) {
        n_tried += 1;
        let fresh = archives::random(&mut rng);
        let archive = match (whole_corpus.next(), rng.u8(..8)) {
            (Some((_, bytes)), _) => bytes.clone(),
            (None, 0) => {
                let (_, bytes) = &corpus[rng.usize(..corpus.len())];
                mutate(&mut rng, bytes, &previous, true)
            }
            (None, 1..4) => mutate(&mut rng, &fresh, &previous, true),
            (None, _) => fresh,
        };
        let opinion = ours(archive.as_slice());
        if let Opinion::Read(_) = opinion {
            n_accepted += 1;
            let of_crate = difference_of_the_tar_crate(&opinion, &archive);
            let of_python = difference_of_python(&opinion, &archive, &mut python);
            // A process for each takes its time.
            let is_asked = n_tried <= corpus.len() as u64 || rng.u8(..8) == 0;
            let of_gnu = is_asked.then(|| difference_of_gnu_tar(&opinion, &archive)).flatten();
            let of_all = [("tar crate", of_crate), ("tarfile", of_python), ("GNU tar", of_gnu)];
            for (who, found) in of_all {
                let Some(found) = found else { continue };
                let name = format!("longshore-difference-{}", differences.len());
                let path = std::env::temp_dir().join(name);
                std::fs::write(&path, &archive).unwrap();
                differences.push(format!("{who}, {}: {found}", path.display()));
            }
        }
        if differences.len() > 20 {
            break;
        }
        previous = archive;
    }
    println!("{n_tried} archives, {n_accepted} accepted");
    assert!(differences.is_empty(), "{n_tried} tried:\n{}", differences.join("\n"));
    assert!(n_accepted * 5 > n_tried, "only {n_accepted} of {n_tried} were accepted");
}

/// What the other test counts on: whoever reads a little of an archive differently is found out.
#[test]
fn a_reader_that_sees_something_else_is_told() {
    let corpus = by_name("tar").unwrap().corpus();
    let (_, archive) = corpus.iter().find(|(name, _)| name.ends_with("kinds-gnu")).unwrap();
    let mut python = Python::start();
    let mut tell = |opinion: &Opinion| {
        [
            difference_of_the_tar_crate(opinion, archive),
            difference_of_python(opinion, archive, &mut python),
            difference_of_gnu_tar(opinion, archive),
        ]
    };
    let opinion = ours(archive.as_slice());
    assert_eq!(tell(&opinion), [None, None, None]);
    let Opinion::Read(items) = opinion else { panic!("{opinion:?}") };
    let target = items.iter().position(|item| item.target.is_some()).unwrap();
    type Change = fn(&mut Item);
    let changes: [(usize, Change); 3] = [
        (0, |item| item.path.push(b'x')),
        (0, |item| item.size += 1),
        (target, |item| item.target = Some(b"elsewhere".to_vec())),
    ];
    for (n, (idx, change)) in changes.into_iter().enumerate() {
        let mut changed = items.clone();
        change(&mut changed[idx]);
        let told = tell(&Opinion::Read(changed));
        assert!(told.iter().all(Option::is_some), "{n}: {told:?}");
    }
    let fewer = Opinion::Read(items[1..].to_vec());
    assert!(tell(&fewer).iter().all(Option::is_some));
}
