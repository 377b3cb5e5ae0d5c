//! What Longshore promises, tried on the release binary. One file per promise.
//!
//! Every test starts a platform of its own and ends with [`Platform::finish`], which fails when
//! anything is left on the machine. One test binary, so that it is linked once.
//!
//! [`Platform::finish`]: longshore_e2e::Platform::finish

#[cfg(test)]
mod access;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod control_plane;
#[cfg(test)]
mod converted;
#[cfg(test)]
mod copying;
#[cfg(test)]
mod dashboard;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod disk_full;
#[cfg(test)]
mod draining;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod gpus;
#[cfg(test)]
mod half_rolled;
#[cfg(test)]
mod hostile_images;
#[cfg(test)]
mod image_in;
#[cfg(test)]
mod instances;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod moved_store;
#[cfg(test)]
mod moving_images;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod node_images;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod odd_images;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod priorities;
#[cfg(test)]
mod programs;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod registry_apart;
#[cfg(test)]
mod rollouts;
#[cfg(test)]
mod running;
#[cfg(test)]
mod runtimes;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod second_node;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod service;
#[cfg(test)]
mod ten_agents;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod two_commands;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod users;
#[cfg(test)]
mod worlds;

#[test]
fn every_file_is_a_module() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e");
    let main = std::fs::read_to_string(here.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(here).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        let listed = module == "main" || main.contains(&format!("mod {module};"));
        assert!(listed, "{name} is not listed in main.rs, so its tests never run");
    }
}
