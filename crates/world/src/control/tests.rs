use super::*;

/// Three places, of which two have a second machine, and this machine at the last.
const MACHINES: [&str; 5] = ["ams", "ams-2", "nyc", "sin", "sin-2"];

fn world() -> (Wire, Vec<&'static Place>) {
    let places: Vec<_> =
        ["ams", "nyc", "sin"].iter().map(|code| Place::find(code).unwrap()).collect();
    (Wire::new(&places, vec![0, 0, 1, 2, 2, 2], 1), places)
}

fn told(wire: &mut Wire, places: &[&'static Place], command: &str) -> Result<(), ControlError> {
    let command = serde_json::from_str(command).unwrap();
    apply(wire, Names { places, machines: &MACHINES }, &command)
}

/// Each path as `a-b` with what is wrong with it, after these commands in JSON.
fn after(commands: &[&str]) -> Vec<String> {
    let (mut wire, places) = world();
    commands.iter().for_each(|command| told(&mut wire, &places, command).unwrap());
    let paths = paths(&wire, &places);
    let show = |path: &PathStatus| {
        let PathStatus { a, b, cut, delay_ms, loss_percent, kbit_per_s, .. } = path;
        let cut = if *cut { " cut" } else { "" };
        format!("{a}-{b}{cut} {delay_ms} {loss_percent} {kbit_per_s:?}")
    };
    paths.iter().map(show).collect()
}

/// What each machine is cut off from by itself after these, where it is.
fn apart(commands: &[&str]) -> Vec<String> {
    let (mut wire, places) = world();
    commands.iter().for_each(|command| told(&mut wire, &places, command).unwrap());
    let from = |machine| cut_from(&wire, Names { places: &places, machines: &MACHINES }, machine);
    let each = MACHINES.iter().enumerate().map(|(idx, name)| (name, from(idx)));
    let each = each.filter(|(_, from)| !from.is_empty());
    each.map(|(name, from)| format!("{name}: {}", from.join(" "))).collect()
}

#[test]
fn pairs_places_and_all_are_cut_slowed_and_mended() {
    let usual = ["ams-nyc 0 0 None", "ams-sin 0 0 None", "nyc-sin 0 0 None"];
    assert_eq!(after(&[r#"{"do": "status"}"#]), usual);
    let pair = r#"{"do": "cut", "a": "sin", "b": "New York"}"#;
    assert_eq!(after(&[pair]), [usual[0], usual[1], "nyc-sin cut 0 0 None"]);
    let place = r#"{"do": "cut", "a": "SIN"}"#;
    assert_eq!(after(&[place]), [usual[0], "ams-sin cut 0 0 None", "nyc-sin cut 0 0 None"]);
    let slow = r#"{"do": "slow", "a": "ams", "b": "nyc", "delay_ms": 300, "loss_percent": 1.5, "kbit_per_s": 800}"#;
    assert_eq!(after(&[slow])[0], "ams-nyc 300 1.5 Some(800)");
    let lossy = r#"{"do": "slow", "a": "ams", "loss_percent": 2}"#;
    assert_eq!(after(&[slow, lossy])[0], "ams-nyc 0 2 None", "the last word counts");
    assert_eq!(after(&[place, slow, r#"{"do": "heal"}"#]), usual);
    let near = r#"{"do": "heal", "a": "ams", "b": "sin"}"#;
    assert_eq!(after(&[place, near]), [usual[0], usual[1], "nyc-sin cut 0 0 None"]);
    assert_eq!(apart(&[pair, place]), [""; 0], "machines of a place reach each other");
}

#[test]
fn a_machine_is_cut_off_from_its_place_from_another_machine_and_from_all() {
    let usual = after(&[]);
    let own = r#"{"do": "cut", "a": "ams-2", "b": "ams"}"#;
    assert_eq!(apart(&[own]), ["ams: ams-2", "ams-2: ams"]);
    assert_eq!(after(&[own]), usual, "others of its place are not");
    let pair = r#"{"do": "cut", "a": "SIN-2", "b": "ams-2"}"#;
    assert_eq!(apart(&[pair]), ["ams-2: sin-2", "sin-2: ams-2"]);
    let place = r#"{"do": "cut", "a": "nyc", "b": "sin-2"}"#;
    assert_eq!(apart(&[place]), ["nyc: sin-2", "sin-2: nyc"]);
    let all = r#"{"do": "cut", "a": "ams-2"}"#;
    let cut_off = "ams-2: ams nyc sin sin-2 user";
    assert_eq!(apart(&[all]), ["ams: ams-2", cut_off, "nyc: ams-2", "sin: ams-2", "sin-2: ams-2"]);

    let heal = |b: &str| format!(r#"{{"do": "heal", "a": "ams-2", "b": "{b}"}}"#);
    assert_eq!(apart(&[own, pair, &heal("ams")]), apart(&[pair]));
    assert_eq!(apart(&[all, &heal("sin")])[1], "ams-2: ams nyc");
    for mends in
        [r#"{"do": "heal"}"#, r#"{"do": "heal", "a": "ams-2"}"#, r#"{"do": "heal", "a": "ams"}"#]
    {
        assert_eq!(apart(&[all, mends]), [""; 0], "{mends}");
    }
    // Its place stays cut off when it is mended by itself.
    let around = r#"{"do": "cut", "a": "ams"}"#;
    assert_eq!(after(&[around, &heal("sin")]), after(&[around]));
}

#[test]
fn what_is_added_is_part_of_the_round_trip() {
    let (mut wire, places) = world();
    let before = paths(&wire, &places)[0].round_trip_ms;
    assert!((before - 125.0).abs() < 5.0, "{before}");
    told(&mut wire, &places, r#"{"do": "slow", "a": "ams", "delay_ms": 50}"#).unwrap();
    let after = paths(&wire, &places)[0].round_trip_ms;
    assert!((after - before - 100.0).abs() < 0.01, "{before} {after}");
}

#[test]
fn what_makes_no_sense_names_the_field_and_changes_nothing() {
    let has = "ams, nyc, sin, ams-2, sin-2";
    for (command, texts) in [
        (r#"{"do": "cut", "a": "par"}"#, &["a = \"par\": not a place or machine", has][..]),
        (r#"{"do": "cut", "a": "sni"}"#, &["did you mean sin?"]),
        (r#"{"do": "cut", "a": "ams", "b": "moon"}"#, &["b = \"moon\""]),
        (r#"{"do": "cut", "a": "nyc-2"}"#, &["a = \"nyc-2\"", has]),
        (r#"{"do": "heal", "b": "moon"}"#, &["b = \"moon\""]),
        (r#"{"do": "cut", "a": "ams", "b": "Amsterdam"}"#, &["both ams: name two"]),
        (r#"{"do": "cut", "a": "ams-2", "b": "AMS-2"}"#, &["both ams-2"]),
        (
            r#"{"do": "slow", "a": "ams-2"}"#,
            &["a = \"ams-2\": not a place of", "has ams, nyc, sin"],
        ),
        (r#"{"do": "slow", "a": "ams", "loss_percent": 101}"#, &["loss_percent = 101", "0 to 100"]),
        (r#"{"do": "slow", "a": "ams", "delay_ms": 60001}"#, &["delay_ms = 60001"]),
        (r#"{"do": "slow", "a": "ams", "kbit_per_s": 0}"#, &["kbit_per_s = 0", "1 to"]),
    ] {
        let (mut wire, places) = world();
        let before = paths(&wire, &places);
        let error = told(&mut wire, &places, command).unwrap_err().to_string();
        for text in texts {
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(paths(&wire, &places), before);
        assert!((0..MACHINES.len()).all(|a| (0..MACHINES.len()).all(|b| !wire.are_apart(a, b))));
    }
}
