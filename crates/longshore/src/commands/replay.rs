//! `longshore replay`

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use longshore_planning::replay::{Outcome, Record, Replay};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Format, Output};

/// Recompute logged decisions from what they were made from, and fail when one comes out otherwise
///
/// The control plane and each location keep theirs in decisions.jsonl of their data directories, in
/// decisions.jsonl.1 those before: two files of 8 MiB at most. Another version may well decide otherwise; what
/// is compared is what this one would.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The log
    file: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What came of a log.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Replayed {
    /// How many decisions came out the same.
    same: usize,
    /// Those that did not.
    different: Vec<Difference>,
    /// The versions that decided.
    versions: Vec<String>,
    /// True when the last line was not written to its end.
    torn: bool,
}

/// A decision that comes out otherwise.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Difference {
    /// The line of the log.
    line: usize,
    /// What was decided.
    what: String,
    /// What was logged.
    logged: String,
    /// What comes out.
    now: String,
}

/// Recomputes a log.
pub fn run(options: &Options) -> Result<(), Failure> {
    let replayed = replay(&options.file)?;
    let format = if options.json { Format::Json } else { Format::Text };
    Output::new(format).data(&replayed, render)?;
    match replayed.different.len() {
        0 => Ok(()),
        n => Err(Failure::new(Kind::Other, format!("decided otherwise than logged: {n}"))),
    }
}

fn replay(path: &Path) -> Result<Replayed, Failure> {
    let file =
        File::open(path).or_fail(Kind::NotFound, format!("cannot open {}", path.display()))?;
    let (mut replay, mut replayed) = (Replay::default(), Replayed::default());
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let doing = format!("cannot read {}", path.display());
        let n_bytes = reader.read_until(b'\n', &mut text).or_fail(Kind::Other, doing)?;
        if n_bytes == 0 {
            break;
        }
        // A machine that died while it was written.
        if text.last() != Some(&b'\n') {
            replayed.torn = true;
            break;
        }
        let doing = format!("line {line} of {} is no decision of this version", path.display());
        let record: Record = serde_json::from_slice(&text).or_fail(Kind::Invalid, doing)?;
        if let Record::Began { version } = &record
            && !replayed.versions.contains(version)
        {
            replayed.versions.push(version.clone());
        }
        match replay.take(record) {
            Outcome::Read => {}
            Outcome::Same => replayed.same += 1,
            Outcome::Different { what, logged, now } => {
                replayed.different.push(Difference { line, what, logged, now });
            }
        }
    }
    Ok(replayed)
}

fn render(replayed: &Replayed) -> String {
    let Replayed { same, different, versions, torn } = replayed;
    let mut text = String::new();
    for Difference { line, what, logged, now } in different {
        text.push_str(&format!("line {line}: {what}\n"));
        for part in differing(logged, now) {
            text.push_str(&format!("  {part}\n"));
        }
    }
    text.push_str(&format!("{same} decisions come out the same, {} otherwise\n", different.len()));
    let own = env!("CARGO_PKG_VERSION");
    for version in versions.iter().filter(|version| *version != own) {
        text.push_str(&format!("decided by version {version}; this is {own}\n"));
    }
    if *torn {
        text.push_str("the last line was not written to its end\n");
    }
    text
}

/// How many lines of a difference are shown; `--json` has all.
const SHOWN: usize = 20;

/// The lines in which two texts differ.
fn differing(logged: &str, now: &str) -> Vec<String> {
    let (mut one, mut other) = (logged.lines(), now.lines());
    let pairs = std::iter::from_fn(|| match (one.next(), other.next()) {
        (None, None) => None,
        pair => Some(pair),
    });
    let differ = pairs.filter(|(logged, now)| logged != now);
    let lines = differ.flat_map(|(logged, now)| {
        let line = |sign, line: Option<&str>| line.map(|line| format!("{sign} {}", line.trim()));
        [line("-", logged), line("+", now)].into_iter().flatten()
    });
    lines.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use longshore_planning::global::{LocationState, NodeKind, WantedApp, plan_shares};
    use longshore_planning::replay::Recorder;
    use longshore_types::{ByteCount, Capacity, MilliCpu, Timestamp};

    use super::*;

    fn location(name: &str, free_mib: u64) -> LocationState {
        let (memory, disk) = (ByteCount::mib(free_mib), ByteCount::gib(1));
        let free = Capacity { cpu: MilliCpu(1000), memory, disk };
        let (traits, freed) = (Default::default(), vec![]);
        let kind = NodeKind {
            traits,
            open: true,
            n_nodes: 1,
            free,
            largest: free,
            gpus: Default::default(),
            freed,
            reached: vec![],
        };
        LocationState {
            name: name.parse().unwrap(),
            reachable: true,
            late: false,
            cordon: None,
            free,
            without: vec![],
            coordinates: None,
            traits: Default::default(),
            kinds: vec![kind],
            unheard: false,
            round_trips: Default::default(),
        }
    }

    fn wanted(count: u32) -> WantedApp {
        let memory = ByteCount::mib(100);
        WantedApp {
            project: Default::default(),
            app: "web".parse().unwrap(),
            count,
            max: 2 * count,
            each: Capacity { cpu: MilliCpu(1), memory, disk: ByteCount::mib(1) },
            gpus: None,
            placement: Default::default(),
            tried: None,
            refusals: Default::default(),
            may_make_room: Default::default(),
            priority: Default::default(),
            pinned: None,
            demand: Default::default(),
            shares: Vec::new(),
        }
    }

    /// A log of one decision for each of these worlds.
    fn log(worlds: &[Vec<LocationState>]) -> String {
        let mut recorder = Recorder::default();
        let mut lines = vec![Record::Began { version: "0.0.1".to_owned() }];
        for states in worlds {
            lines.extend(recorder.locations(states));
            let (now, app) = (Timestamp(7), Box::new(wanted(3)));
            let shared = Box::new(plan_shares(now, &app, states));
            lines.push(Record::Global { now, app, shared });
        }
        let text = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n");
        text.collect()
    }

    fn replayed(text: &str) -> Result<Replayed, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.jsonl");
        std::fs::write(&path, text).unwrap();
        replay(&path)
    }

    #[test]
    fn what_was_decided_comes_out_again_and_what_was_not_is_found() {
        let (ams, sin) = (location("ams", 1000), location("sin", 250));
        let worlds = [
            vec![ams.clone(), sin.clone()],
            vec![location("ams", 50), sin.clone()],
            vec![sin.clone()],
            vec![sin.clone()],
        ];
        let text = log(&worlds);
        let kinds = text.lines().map(|line| line.split('"').nth(3).unwrap());
        let expected = [
            "began",
            "locations",
            "global",
            "locations",
            "global",
            "locations",
            "global",
            "global",
        ];
        assert_eq!(kinds.collect::<Vec<_>>(), expected);
        let whole = replayed(&text).unwrap();
        assert_eq!((whole.same, whole.different.len(), whole.torn), (4, 0, false));
        assert_eq!(
            render(&whole).lines().last(),
            Some(
                format!("decided by version 0.0.1; this is {}", env!("CARGO_PKG_VERSION")).as_str()
            )
        );
        let torn = replayed(&text[..text.len() - 5]).unwrap();
        assert_eq!((torn.same, torn.torn), (3, true));

        // Somebody who had decided otherwise.
        let other = text.replacen(
            "\"shares\":[{\"location\":\"ams\",\"count\":3",
            "\"shares\":[{\"location\":\"ams\",\"count\":2",
            1,
        );
        assert_ne!(other, text);
        let other = replayed(&other).unwrap();
        assert_eq!((other.same, other.different.len(), other.different[0].line), (3, 1, 3));
        let told = render(&other);
        assert!(
            told.contains("line 3: the locations of default/web\n  - count: 2,\n  + count: 3,\n"),
            "{told}"
        );
        assert!(replayed("{\"kind\":\"dream\"}\n").is_err());
    }
}
