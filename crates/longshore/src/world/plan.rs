//! Which machines a world has, and with which flags each runs its part of the platform.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use longshore_global::StoreChoice;
use longshore_types::IpNet;
use longshore_world::{Place, PlaceIdx};

use crate::failure::{Failure, Kind};

/// Where machines listen for each other.
const NODES_PORT: u16 = 4602;
const GATE_PORT: u16 = 4603;
const LOCATIONS_PORT: u16 = 4604;
const INGRESS_PORT: u16 = 80;

/// The network that the instances of all machines get addresses from, and how many bits of an address
/// say which of one machine. What runs on this machine beside worlds takes from the beginning.
const INSTANCE_POOL: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const INSTANCE_BITS: u32 = 10;
const FIRST_BLOCK: u32 = 31;

/// What a person says of a world.
#[derive(Debug, Clone)]
pub struct WorldSettings {
    /// Where its locations are; the first has the control plane.
    pub locations: Vec<&'static Place>,
    /// How many machines each location has.
    pub n_nodes: usize,
    /// Where this machine is.
    pub user_at: &'static Place,
    /// What decides what of the wire is chance.
    pub seed: u64,
    /// Where the state of its control plane is.
    pub store: StoreChoice,
    /// Where everything is kept.
    pub dir: PathBuf,
}

/// What a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `up`: the control plane, the registry, and the first location.
    Control,
    /// A location, with its first node.
    Location,
    /// One more node of a location.
    Node,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePlan {
    /// Its name, also as a node. The first of a place has the name of that.
    pub name: String,
    /// Where it is.
    pub place: PlaceIdx,
    /// What it runs.
    pub part: Part,
}

/// All of a world.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldPlan {
    /// Its places: those of the locations, then that of this machine if it is another.
    pub places: Vec<&'static Place>,
    /// How many of these have a location.
    pub n_locations: usize,
    /// Its machines but this one, which is on the wire as the last.
    pub machines: Vec<MachinePlan>,
    /// Where this machine is.
    pub user_at: PlaceIdx,
    /// Where the state of its control plane is.
    pub store: StoreChoice,
}

/// Where the control plane listens, on the loopback of its machine and, for those of this one, here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The API.
    pub api: u16,
    /// The registry.
    pub registry: u16,
}

impl WorldSettings {
    /// The places that are named, or as many as are wanted.
    pub fn choose_places(
        named: &[&'static Place],
        n_locations: usize,
    ) -> Result<Vec<&'static Place>, Failure> {
        if named.is_empty() {
            return Ok(Place::all().iter().take(n_locations).collect());
        }
        for (idx, place) in named.iter().enumerate() {
            if named[..idx].contains(place) {
                let message = format!("--places names {} twice", place.code);
                return Err(Failure::new(Kind::Usage, message)
                    .hint("each place has one location; --nodes says how many machines it has"));
            }
        }
        Ok(named.to_vec())
    }

    /// What there has to be.
    pub fn plan(&self) -> WorldPlan {
        let Self { locations, n_nodes, user_at, store, .. } = self;
        let mut places = locations.clone();
        let user_at = places.iter().position(|place| place == user_at).unwrap_or_else(|| {
            places.push(*user_at);
            places.len() - 1
        });
        let machines = locations.iter().enumerate().flat_map(|(idx, place)| {
            (1..=*n_nodes).map(move |number| MachinePlan {
                name: match number {
                    1 => place.code.to_owned(),
                    _ => format!("{}-{number}", place.code),
                },
                place: idx,
                part: match (idx, number) {
                    (0, 1) => Part::Control,
                    (_, 1) => Part::Location,
                    _ => Part::Node,
                },
            })
        });
        let machines = machines.collect();
        let (n_locations, store) = (locations.len(), store.clone());
        WorldPlan { places, n_locations, machines, user_at, store }
    }
}

impl WorldPlan {
    /// The place of a machine.
    pub fn place_of(&self, machine: usize) -> &'static Place {
        self.places[self.machines[machine].place]
    }

    /// How the machines are called.
    pub fn names(&self) -> Vec<&str> {
        self.machines.iter().map(|machine| &*machine.name).collect()
    }

    /// Where each machine is on the wire, this one last.
    pub fn positions(&self) -> Vec<PlaceIdx> {
        let others = self.machines.iter().map(|machine| machine.place);
        others.chain([self.user_at]).collect()
    }

    /// The machine of the control plane, which is the first of the first place.
    pub fn control(&self) -> usize {
        self.with_part(Part::Control).next().unwrap_or_default()
    }

    /// The machines that run this.
    pub fn with_part(&self, part: Part) -> impl Iterator<Item = usize> {
        let machines = self.machines.iter().enumerate();
        machines.filter(move |(_, machine)| machine.part == part).map(|(idx, _)| idx)
    }

    /// The command line of the control plane's machine.
    pub fn up(&self, machine: usize, address: Ipv4Addr, ports: Ports, dir: &Path) -> Vec<String> {
        let place = self.place_of(machine);
        let flags = [
            ("api-listen", format!("127.0.0.1:{}", ports.api)),
            ("registry-listen", format!("127.0.0.1:{}", ports.registry)),
            ("ingress-listen", format!("{address}:{INGRESS_PORT}")),
            ("nodes-listen", format!("{address}:{NODES_PORT}")),
            ("locations-listen", format!("{address}:{LOCATIONS_PORT}")),
            ("location", place.code.to_owned()),
            ("coordinates", place.coordinates().to_string()),
            ("country", place.country.to_owned()),
            ("node", self.machines[machine].name.clone()),
            ("store", self.store.to_string()),
        ];
        let own = ["up".to_owned(), "--no-context".to_owned()];
        own.into_iter().chain(flagged(flags)).chain(self.common(machine, dir)).collect()
    }

    /// The command line of another machine: to join with a token, and to start without one.
    pub fn member(
        &self,
        machine: usize,
        address: Ipv4Addr,
        token: Option<&str>,
        dir: &Path,
    ) -> Vec<String> {
        let MachinePlan { name, part, .. } = &self.machines[machine];
        let (verb, name_flag) = match part {
            Part::Node => ("node", "--name"),
            Part::Control | Part::Location => ("location", "--node"),
        };
        let mut line = vec![verb.to_owned()];
        match token {
            Some(token) => line.extend(["join", token, name_flag, name].map(str::to_owned)),
            None => line.push("start".to_owned()),
        }
        match part {
            Part::Node => line.extend(flagged([("gate-listen", format!("{address}:{GATE_PORT}"))])),
            Part::Control | Part::Location => line.extend(flagged([
                ("nodes-listen", format!("{address}:{NODES_PORT}")),
                ("ingress-listen", format!("{address}:{INGRESS_PORT}")),
                ("coordinates", self.place_of(machine).coordinates().to_string()),
                ("country", self.place_of(machine).country.to_owned()),
            ])),
        }
        line.extend(self.common(machine, dir));
        line
    }

    fn common(&self, machine: usize, dir: &Path) -> Vec<String> {
        let block = FIRST_BLOCK + u32::try_from(machine).unwrap_or_default();
        let pool = Ipv4Addr::from(u32::from(INSTANCE_POOL) + (block << INSTANCE_BITS));
        let prefix = u8::try_from(32 - INSTANCE_BITS).unwrap_or_default();
        let pool = IpNet::new(pool, prefix).map(|pool| pool.to_string()).unwrap_or_default();
        let name = &self.machines[machine].name;
        let mut common = in_dir(&dir.join(name));
        common.extend(flagged([("instance-pool", pool)]));
        common
    }
}

/// The flags by which everything of a machine lies in its directory, and ends with it.
pub fn in_dir(dir: &Path) -> Vec<String> {
    let flags = ["data", "run"].map(|what| (what, dir.join(what).display().to_string()));
    let flags = flagged(flags.map(|(what, path)| (format!("{what}-dir"), path)));
    flags.into_iter().chain(["--stop-instances".to_owned()]).collect()
}

/// Where requests to the location of a machine come in.
pub fn ingress_of(address: Ipv4Addr) -> String {
    format!("{address}:{INGRESS_PORT}")
}

/// Flags with their values. South and west are negative, so that a value may look like a flag.
pub fn flagged<N: std::fmt::Display>(flags: impl IntoIterator<Item = (N, String)>) -> Vec<String> {
    flags.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn settings(codes: &[&str], n_nodes: usize, user_at: &str) -> WorldSettings {
        WorldSettings {
            locations: codes.iter().map(|code| Place::find(code).unwrap()).collect(),
            n_nodes,
            user_at: Place::find(user_at).unwrap(),
            seed: 1,
            store: "http://127.0.0.1:2379/longshore".parse().unwrap(),
            dir: "/world".into(),
        }
    }

    #[test]
    fn each_location_has_its_machines_and_the_user_a_place() {
        let plan = settings(&["ams", "sin"], 2, "lon").plan();
        let machines: Vec<_> = plan.machines.iter().map(|m| (&*m.name, m.place, m.part)).collect();
        let expected = [
            ("ams", 0, Part::Control),
            ("ams-2", 0, Part::Node),
            ("sin", 1, Part::Location),
            ("sin-2", 1, Part::Node),
        ];
        assert_eq!(machines, expected);
        assert_eq!((plan.n_locations, plan.places.len(), plan.user_at), (2, 3, 2));
        assert_eq!(plan.positions(), [0, 0, 1, 1, 2]);
        assert_eq!(plan.with_part(Part::Node).collect::<Vec<_>>(), [1, 3]);

        let near = settings(&["ams", "sin"], 1, "sin").plan();
        assert_eq!((near.places.len(), near.user_at), (2, 1));
    }

    #[test]
    fn places_are_chosen_or_named_and_none_twice() {
        let all = WorldSettings::choose_places(&[], 5).unwrap();
        assert_eq!(all.len(), 5);
        let [ams, sin] = ["ams", "sin"].map(|code| Place::find(code).unwrap());
        assert_eq!(WorldSettings::choose_places(&[sin, ams], 5).unwrap(), [sin, ams]);
        let failure = WorldSettings::choose_places(&[sin, ams, sin], 5).unwrap_err();
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.message.contains("sin twice"), "{failure}");
    }

    #[test]
    fn every_machine_understands_the_flags_it_is_given() {
        // South and west.
        let plan = settings(&["ams", "sao"], 2, "lon").plan();
        let dir = Path::new("/world");
        let address = |machine: u8| Ipv4Addr::new(198, 18, 0, machine + 1);
        let token = |joins| {
            let token = longshore_trust::JoinToken {
                joins,
                address: "198.18.0.1:4604".to_owned(),
                root: "0".repeat(64).parse().unwrap(),
                secret: "0".repeat(64).into(),
                recovers: false,
            };
            token.text().to_string()
        };
        let (location, node) = (
            token(longshore_trust::JoinAs::Location("sao".parse().unwrap())),
            token(longshore_trust::JoinAs::Node("sao".parse().unwrap())),
        );
        let lines = [
            plan.up(0, address(0), Ports { api: 4600, registry: 4601 }, dir),
            plan.member(2, address(2), Some(&location), dir),
            plan.member(2, address(2), None, dir),
            plan.member(3, address(3), Some(&node), dir),
            plan.member(3, address(3), None, dir),
        ];
        for line in &lines {
            let line = std::iter::once("longshore").chain(line.iter().map(String::as_str));
            let line: Vec<_> = line.collect();
            Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        }
        // The users of instances follow from their network: no two machines have the same.
        let pools: std::collections::BTreeSet<_> =
            lines.iter().flatten().filter(|flag| flag.starts_with("--instance-pool")).collect();
        assert_eq!(pools.len(), 3);
    }
}
