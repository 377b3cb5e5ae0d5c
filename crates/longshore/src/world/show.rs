//! A world as a person sees it.

use longshore_world::control::{MachineStatus, PathStatus, Status};

use crate::output::table_text;
use crate::table::Table;

/// Its locations as a table, and what is not as it usually is.
pub fn render(status: &Status) -> String {
    let mut table = Table::new(&["LOCATION", "PLACE", "INGRESS", "FROM HERE", "MACHINES"]);
    for location in &status.locations {
        let machines = status.machines.iter().filter(|machine| machine.place == location.name);
        table.row([
            location.name.clone(),
            format!("{}, {}", location.city, location.country),
            location.ingress.clone(),
            from_user(status, &location.name),
            machines.count().to_string(),
        ]);
    }
    let mut text = table_text(&table);
    let unusual = status.paths.iter().filter_map(unusual);
    let unusual: Vec<_> = unusual.chain(cut_machines(status)).collect();
    if !unusual.is_empty() {
        text.push_str(&format!("\n{}\n", unusual.join("\n")));
    }
    let dead = status.machines.iter().filter(|machine| machine.pid.is_none());
    dead.for_each(|machine| text.push_str(&format!("\n{}: nothing runs there\n", machine.name)));
    text
}

/// How far a place is from this machine, there and back.
fn from_user(status: &Status, place: &str) -> String {
    let Status { user_at, paths, .. } = status;
    let joins = |path: &&PathStatus| {
        let ends = [&*path.a, &*path.b];
        ends == [user_at.as_str(), place] || ends == [place, user_at]
    };
    let path = paths.iter().find(joins);
    match path {
        Some(path) if path.cut => "cut off".to_owned(),
        Some(path) => format!("{:.0} ms", path.round_trip_ms),
        None => "here".to_owned(),
    }
}

/// What is not as distance has it, in a line.
fn unusual(path: &PathStatus) -> Option<String> {
    let PathStatus { a, b, cut, delay_ms, loss_percent, kbit_per_s, .. } = path;
    let mut parts = Vec::new();
    if *cut {
        parts.push("cut".to_owned());
    }
    if *delay_ms > 0 {
        parts.push(format!("{delay_ms} ms longer each way"));
    }
    if *loss_percent > 0.0 {
        parts.push(format!("{loss_percent} % lost"));
    }
    if let Some(kbit) = kbit_per_s {
        parts.push(format!("at most {kbit} kbit/s"));
    }
    (!parts.is_empty()).then(|| format!("{a} - {b}: {}", parts.join(", ")))
}

/// The machines that are cut off by themselves, and the pairs that are, in a line each.
fn cut_machines(status: &Status) -> Vec<String> {
    let machines = &status.machines;
    // All others are as many as the list has, for this machine is not in it.
    let is_off = |machine: &MachineStatus| machine.cut_from.len() == machines.len();
    let is_told = |name: &str, before: &[MachineStatus]| {
        let is_it = |machine: &&MachineStatus| machine.name == name;
        machines.iter().find(is_it).is_some_and(is_off) || before.iter().any(|one| one.name == name)
    };
    let mut lines = Vec::new();
    for (idx, machine) in machines.iter().enumerate() {
        let MachineStatus { name, cut_from, .. } = machine;
        if is_off(machine) {
            lines.push(format!("{name}: cut off"));
            continue;
        }
        let others = cut_from.iter().filter(|other| !is_told(other, &machines[..idx]));
        lines.extend(others.map(|other| format!("{name} - {other}: cut")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use longshore_world::control::LocationStatus;

    use super::*;

    fn path(a: &str, b: &str, round_trip_ms: f64) -> PathStatus {
        PathStatus {
            a: a.to_owned(),
            b: b.to_owned(),
            round_trip_ms,
            cut: false,
            delay_ms: 0,
            loss_percent: 0.0,
            kbit_per_s: None,
            n_carried: 0,
            n_dropped: 0,
        }
    }

    #[test]
    fn a_world_is_a_table_and_what_is_unusual() {
        let location = |name: &str, city: &str| LocationStatus {
            name: name.to_owned(),
            city: city.to_owned(),
            country: "XX".to_owned(),
            ingress: "http://198.18.0.1:80".to_owned(),
        };
        let machine = |name: &str, place: &str, pid, cut_from: &[&str]| MachineStatus {
            name: name.to_owned(),
            place: place.to_owned(),
            address: "198.18.0.1".to_owned(),
            dir: "/world".to_owned(),
            pid,
            cut_from: cut_from.iter().map(|name| (*name).to_owned()).collect(),
        };
        let cut = PathStatus { cut: true, delay_ms: 5, ..path("lon", "sin", 228.0) };
        let slow =
            PathStatus { loss_percent: 1.5, kbit_per_s: Some(800), ..path("ams", "sin", 222.0) };
        let status = Status {
            seed: 1,
            user_at: "lon".to_owned(),
            locations: vec![
                location("ams", "Amsterdam"),
                location("sin", "Singapore"),
                location("lon", "London"),
            ],
            paths: vec![slow, path("ams", "lon", 9.73), cut],
            machines: vec![
                machine("ams", "ams", Some(1), &["ams-2", "sin-2"]),
                machine("ams-2", "ams", Some(2), &["ams", "sin", "sin-2", "user"]),
                machine("sin", "sin", None, &["ams-2"]),
                machine("sin-2", "sin", Some(4), &["ams", "ams-2"]),
            ],
        };
        assert_eq!(
            render(&status),
            "LOCATION  PLACE          INGRESS               FROM HERE  MACHINES\n\
             ams       Amsterdam, XX  http://198.18.0.1:80  10 ms      2\n\
             sin       Singapore, XX  http://198.18.0.1:80  cut off    2\n\
             lon       London, XX     http://198.18.0.1:80  here       0\n\
             \n\
             ams - sin: 1.5 % lost, at most 800 kbit/s\n\
             lon - sin: cut, 5 ms longer each way\n\
             ams - sin-2: cut\n\
             ams-2: cut off\n\
             \n\
             sin: nothing runs there\n"
        );
    }
}
