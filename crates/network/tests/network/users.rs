//! User namespaces of instances, and the networks that belong to them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use longshore_network::{AttachError, Network};
use longshore_types::IdRange;

use crate::lab::{Lab, SERVER, assert_reaches, dial, instance, on_a_host, run, serve_tcp, try_run};

/// What the kernel says that the ids of a user namespace are.
fn map_of(users: &Path) -> Vec<u32> {
    let said = run(&format!("nsenter --user={} cat /proc/self/uid_map", users.display()));
    said.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// The inode of the user namespace that a namespace belongs to.
fn owner_of(namespace: &Path) -> u64 {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    let file = File::open(namespace).unwrap();
    // SAFETY: the request takes no argument and gives a new descriptor, which the test leaks.
    let owner = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS) };
    assert!(owner >= 0, "{}", std::io::Error::last_os_error());
    fs::metadata(format!("/proc/self/fd/{owner}")).unwrap().ino()
}

#[test]
fn every_instance_has_users_of_its_own_to_which_its_network_belongs() {
    on_a_host(async |lab: Lab| {
        serve_tcp(&lab.internet(), &format!("{SERVER}:80"));
        let network = lab.open("aaaaaa").await;
        let mut ranges = BTreeSet::new();
        for n in 0..6 {
            let attached = network.attach(&instance(n), &[]).await.unwrap();
            let users = attached.users.clone().unwrap();
            assert_eq!(map_of(&users.path), [0, users.ids.first(), IdRange::LEN]);
            assert_eq!(owner_of(&attached.netns), fs::metadata(&users.path).unwrap().ino());
            assert_reaches(&attached, &format!("{SERVER}:80"));
            ranges.insert(users.ids);
        }
        assert_eq!(ranges.len(), 6);
        let other = lab.open("bbbbbb").await;
        let users = other.attach(&instance(1), &[]).await.unwrap().users.unwrap();
        let all: Vec<IdRange> = ranges.into_iter().chain([users.ids]).collect();
        for (idx, one) in all.iter().enumerate() {
            let mut others = all.iter().skip(idx + 1);
            assert!(others.all(|two| one.last() < two.first() || two.last() < one.first()));
        }
        network.remove_all().await.unwrap();
        other.remove_all().await.unwrap();
    });
}

/// The machine's root has every right over the network of a user namespace; whoever runs as it must
/// not get such a network.
#[test]
fn without_users_of_its_own_the_network_belongs_to_the_machine() {
    on_a_host(async |lab: Lab| {
        serve_tcp(&lab.internet(), &format!("{SERVER}:80"));
        let network = lab.open("aaaaaa").await;
        let own = fs::metadata("/proc/self/ns/user").unwrap().ino();
        let attached = network.attach_without_users(&instance(1), &[]).await.unwrap();
        assert_eq!((attached.users.clone(), owner_of(&attached.netns)), (None, own));
        assert_eq!(network.attach_without_users(&instance(1), &[]).await.unwrap(), attached);
        assert!(dial(&attached.netns, format!("{SERVER}:80")).is_ok());
        // A change of mind is another network, never the old one.
        let changed = network.attach(&instance(1), &[]).await.unwrap();
        assert_ne!(changed.address, attached.address);
        assert_ne!(owner_of(&changed.netns), own);
        network.remove_all().await.unwrap();
    });
}

#[test]
fn the_next_agent_finds_the_same_users() {
    on_a_host(async |lab: Lab| {
        let network = lab.open("aaaaaa").await;
        let before = network.attach(&instance(1), &[]).await.unwrap();
        let without = network.attach_without_users(&instance(2), &[]).await.unwrap();
        drop(network);
        let network = lab.open("aaaaaa").await;
        assert_eq!(network.attachment(&instance(1)), Some(before.clone()));
        assert_eq!(network.attachment(&instance(2)), Some(without));
        assert_eq!(network.attach(&instance(1), &[]).await.unwrap(), before);
        // Somebody unmounts the namespace: the instance gets another, with a network to match.
        run(&format!("umount {}", before.users.unwrap().path.display()));
        let after = network.attach(&instance(1), &[]).await.unwrap();
        assert_eq!(owner_of(&after.netns), fs::metadata(after.users.unwrap().path).unwrap().ino());
        network.remove_all().await.unwrap();
    });
}

#[test]
fn only_root_sees_more_than_the_way_to_a_network() {
    on_a_host(async |lab: Lab| {
        let network = lab.open("aaaaaa").await;
        network.attach(&instance(1), &[]).await.unwrap();
        let run_dir = lab.config("aaaaaa").run_dir;
        let mode =
            |path: &str| fs::metadata(run_dir.join(path)).unwrap().permissions().mode() & 0o777;
        for (path, expected) in [
            ("", 0o711),
            ("netns", 0o711),
            ("users", 0o700),
            ("instances", 0o700),
            ("network.lock", 0o600),
        ] {
            assert_eq!(mode(path), expected, "{path:?}");
        }
        network.remove_all().await.unwrap();
    });
}

#[test]
fn what_stands_in_the_way_of_user_namespaces_is_told() {
    on_a_host(async |lab: Lab| {
        let mut config = lab.config("aaaaaa");
        config.holder = "/bin/false".into();
        let network = Network::open(config).await.unwrap();
        let error = network.attach(&instance(1), &[]).await.unwrap_err();
        assert!(matches!(error, AttachError::Slot(_)), "{error:?}");
        assert!(error.to_string().contains("make user namespace"), "{error}");
        assert!(network.attach_without_users(&instance(2), &[]).await.is_ok());
        network.remove_all().await.unwrap();
        // The program's own words.
        let holder = env!("CARGO_BIN_EXE_network-test-holder");
        let output = Command::new(holder).args(["shim-namespaces", "1"]).output().unwrap();
        assert!(!output.status.success());
        let (_, said, is_fine) = try_run(&format!("{holder} shim-namespaces many"));
        assert!(!is_fine && said.contains("first id of a range"), "{said}");
    });
}
