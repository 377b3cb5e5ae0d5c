//! Instances come and go, agents are killed, and nothing is left behind.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use longshore_network::Network;

use crate::lab::*;

#[test]
fn attaching_and_detaching_twice_is_the_same_as_once() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let first = network.attach(&instance(1), &[]).await.unwrap();
        assert_eq!(network.attach(&instance(1), &[]).await.unwrap(), first);
        assert_eq!(network.attachment(&instance(1)), Some(first.clone()));
        assert_eq!(network.instances(), BTreeSet::from([instance(1)]));
        network.detach(&instance(1)).await.unwrap();
        network.detach(&instance(1)).await.unwrap();
        assert!(!first.netns.exists());
        assert_eq!(network.attachment(&instance(1)), None);
        let second = network.attach(&instance(1), &[]).await.unwrap();
        assert_ne!(second.address, first.address, "an address is not used again at once");
    });
}

#[test]
fn an_instance_keeps_its_network_and_connections_while_agents_come_and_go() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let before = network.attach(&instance(1), &egress(&["10.9.9.9"])).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        let listener = within(&before.netns, || TcpListener::bind("0.0.0.0:8080").unwrap());
        let mut client = TcpStream::connect((before.address, 8080)).unwrap();
        let (mut served, _) = listener.accept().unwrap();

        drop(network);
        assert_reaches(&before, &format!("{SERVER}:80"));
        let network = lab.open("aaaa01").await;
        assert_eq!(network.attachment(&instance(1)), Some(before.clone()));
        assert_eq!(network.attach(&instance(1), &egress(&["10.9.9.9"])).await.unwrap(), before);
        assert_reaches(&before, "10.9.9.9:80");
        assert_cut_off(&before, "172.16.9.9:80");

        client.write_all(b"still").unwrap();
        let mut buffer = [0; 5];
        served.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"still");
    });
}

#[test]
fn everything_is_removed_and_only_what_is_the_agents_own() {
    on_a_host(async |lab| {
        run("nft add table inet somebody");
        // Tables of other programs are there before, as they are on any host.
        let before = lab.host_state();
        let other = lab.open("aaaa02").await;
        other.attach(&instance(9), &[]).await.unwrap();
        let network = lab.open("aaaa01").await;
        for n in 1..4 {
            network.attach(&instance(n), &egress(&["10.0.0.0/8"])).await.unwrap();
        }
        network.remove_all().await.unwrap();
        let between = lab.host_state();
        assert!(!between.contains("aaaa01"), "{between}");
        assert!(other.attachment(&instance(9)).unwrap().netns.exists());
        other.remove_all().await.unwrap();
        assert_eq!(lab.host_state(), before);
        for dir in ["run/netns", "run/instances", "state/network.json"] {
            assert!(!lab.dir().join(format!("aaaa01-{dir}")).exists(), "{dir}");
        }
    });
}

#[test]
fn ten_agents_that_start_at_once_choose_disjoint_subnets() {
    on_a_host(async |lab| {
        let names: Vec<String> = (0..10).map(|n| format!("aaaa0{n}")).collect();
        let opening = names.iter().map(|name| tokio::spawn(Network::open(lab.config(name))));
        let mut networks = Vec::new();
        for opening in opening.collect::<Vec<_>>() {
            networks.push(opening.await.unwrap().unwrap());
        }
        let subnets: Vec<_> = networks.iter().map(Network::subnet).collect();
        for (idx, subnet) in subnets.iter().enumerate() {
            for other in &subnets[idx + 1..] {
                assert!(!subnet.overlaps(*other), "{subnet} and {other}");
            }
        }
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        for network in &networks {
            let attached = network.attach(&instance(1), &[]).await.unwrap();
            assert_reaches(&attached, &format!("{SERVER}:80"));
        }
    });
}

#[test]
fn fifty_instances_at_once_leak_nothing() {
    on_a_host(async |lab| {
        let before = lab.host_state();
        let network = std::sync::Arc::new(lab.open("aaaa01").await);
        let attach = |n: usize| {
            let network = std::sync::Arc::clone(&network);
            tokio::spawn(async move {
                let rules = if n.is_multiple_of(5) { egress(&["10.0.0.0/8"]) } else { vec![] };
                network.attach(&instance(n), &rules).await.unwrap().address
            })
        };
        let mut addresses = BTreeSet::new();
        for attaching in (0..50).map(attach).collect::<Vec<_>>() {
            assert!(addresses.insert(attaching.await.unwrap()), "an address was given twice");
        }
        let keep = (0..50).filter(|n| n % 10 == 0).map(instance).collect();
        let gone = network.retain(&keep).await.unwrap();
        assert_eq!((gone.len(), network.instances()), (45, keep));
        let detach = |n: usize| {
            let network = std::sync::Arc::clone(&network);
            tokio::spawn(async move { network.detach(&instance(n)).await.unwrap() })
        };
        for detaching in (0..50).map(detach).collect::<Vec<_>>() {
            detaching.await.unwrap();
        }
        let rules = run("nft list table inet longshore_aaaa01");
        assert!(!rules.contains("egress_"), "{rules}");
        let network = std::sync::Arc::into_inner(network).unwrap();
        network.remove_all().await.unwrap();
        assert_eq!(lab.host_state(), before);
    });
}

/// Every state that a kill can leave is some of these things without the others.
#[test]
fn what_was_left_half_made_is_removed_and_what_is_whole_is_kept() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let whole = network.attach(&instance(1), &egress(&["10.0.0.0/8"])).await.unwrap();
        let netns = lab.dir().join("aaaa01-run/netns");
        // The instance's namespace and its name, and four that are ready.
        let is_full = || std::fs::read_dir(&netns).unwrap().count() == 6;
        eventually("four slots are ready", is_full).await;
        drop(network);
        let records = lab.dir().join("aaaa01-run/instances");
        let record = std::fs::read_to_string(records.join("web-00000001")).unwrap();

        run("ip link add lgaaaa01-700 type veth peer name leftover");
        std::fs::write(netns.join("slot_701"), "").unwrap();
        std::os::unix::fs::symlink("slot_702", netns.join("web-00000702")).unwrap();
        std::fs::write(records.join("web-00000703.new"), &record).unwrap();
        let elsewhere = record.replace(&whole.address.to_string(), "100.64.2.190");
        std::fs::write(records.join("web-00000704"), elsewhere).unwrap();
        run("nft add chain inet longshore_aaaa01 egress_705");

        let network = lab.open("aaaa01").await;
        assert_eq!(network.instances(), BTreeSet::from([instance(1)]));
        let state = lab.host_state();
        for gone in ["lgaaaa01-700", "egress_705"] {
            assert!(!state.contains(gone), "{gone} is left in\n{state}");
        }
        assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1);
        eventually("only what it should be is there", is_full).await;
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        assert_reaches(&whole, "10.9.9.9:80");
    });
}

const CHILD: &str = "LONGSHORE_NETWORK_TEST_CHILD";

/// Not a test of its own: the agent that the next one kills.
#[test]
fn agent_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let lab = Lab::at(dir.into());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let network = lab.open("aaaa01").await;
        println!("open");
        for n in 0.. {
            let rules = if n % 2 == 0 { egress(&["10.0.0.0/8"]) } else { vec![] };
            network.attach(&instance(n), &rules).await.unwrap();
            if n >= 2 {
                network.detach(&instance(n - 2)).await.unwrap();
            }
        }
    });
}

#[test]
fn an_agent_killed_at_any_moment_leaves_nothing_that_the_next_does_not_remove() {
    on_a_host(async |lab| {
        let before = lab.host_state();
        // The delays cover opening and some rounds of attaching and detaching, at odd places.
        for n in 0..24u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "lifecycle::agent_that_is_killed", "--nocapture"])
                .env(CHILD, lab.dir())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            tokio::time::sleep(Duration::from_millis(7 * n + n * n / 2)).await;
            child.kill().unwrap();
            child.wait().unwrap();

            let network = lab.open("aaaa01").await;
            for known in network.instances() {
                let attached = network.attachment(&known).unwrap();
                within(&attached.netns, || {
                    let addresses = run("ip -4 address show dev eth0");
                    assert!(addresses.contains(&attached.address.to_string()), "{addresses}");
                });
            }
            if n % 4 == 3 {
                network.remove_all().await.unwrap();
                assert_eq!(lab.host_state(), before, "after kill {n}");
            }
        }
    });
}

#[test]
fn attaching_takes_from_what_was_made_ahead() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let netns = lab.dir().join("aaaa01-run/netns");
        let mut figures = Vec::new();
        for rules in [vec![], egress(&["10.0.0.0/8:5432/tcp"])] {
            let mut took = Vec::new();
            for n in 0..40 {
                let n_ready = || std::fs::read_dir(&netns).unwrap().count();
                eventually("slots are ready", || n_ready() >= 4).await;
                // Namespaces being made hold the kernel's lock for links, which attaching does not
                // need: the figure holds for one instance as for a burst of four.
                let start = Instant::now();
                network.attach(&instance(n), &rules).await.unwrap();
                took.push(start.elapsed());
                network.detach(&instance(n)).await.unwrap();
            }
            took.sort();
            figures.push((took[20], took[39]));
        }
        let [plain, with_egress] = figures[..] else { unreachable!() };
        println!("attach: p50 {:?}, p99 {:?}", plain.0, plain.1);
        let start = Instant::now();
        let burst = (100..120).map(|n| {
            let network = &network;
            async move { network.attach(&instance(n), &[]).await.unwrap() }
        });
        futures_util::future::join_all(burst).await;
        println!("attach 20 at once: {:?}", start.elapsed());
        println!("attach with an egress list: p50 {:?}, p99 {:?}", with_egress.0, with_egress.1);
    });
}
