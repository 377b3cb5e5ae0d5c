//! What others take away comes back.

use longshore_network::{Network, OpenNetworkError};

use crate::lab::*;

#[test]
fn rules_that_were_flushed_come_back_with_every_egress_list() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let a = network.attach(&instance(1), &egress(&["10.9.9.9"])).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        serve_tcp(&here(), "0.0.0.0:22");
        network.reconcile().await.unwrap();
        let before = run("nft list table inet longshore_aaaa01");
        run("nft flush ruleset");
        dial(&a.netns, format!("{HOST}:22")).expect("nothing forbids it now");
        network.reconcile().await.unwrap();
        assert_cut_off(&a, format!("{HOST}:22"));
        assert_reaches(&a, "10.9.9.9:80");
        assert_reaches(&a, &format!("{SERVER}:80"));
        assert_eq!(run("nft list table inet longshore_aaaa01"), before);
    });
}

#[test]
fn a_rule_that_was_deleted_or_added_is_put_right() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let before = run("nft list table inet longshore_aaaa01");
        run("nft flush chain inet longshore_aaaa01 from_instance");
        network.reconcile().await.unwrap();
        assert_eq!(run("nft list table inet longshore_aaaa01"), before);
        run("nft insert rule inet longshore_aaaa01 from_instance accept");
        network.reconcile().await.unwrap();
        assert_eq!(run("nft list table inet longshore_aaaa01"), before);
    });
}

#[test]
fn links_and_routes_that_were_deleted_come_back() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let a = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        let to = format!("{SERVER}:80");
        let link = format!("lgaaaa01-{}", a.address.octets()[3]);
        // What is made ahead of need comes when it comes.
        let n_routes = |state: &str| state.matches("proto 76 scope link").count();
        eventually("all slots are ready", || n_routes(&lab.host_state()) == 5).await;
        let before = lab.host_state();
        for damage in [
            format!("ip link delete {link}"),
            format!("ip link set {link} down"),
            format!("ip route delete {}", a.address),
            format!("ip route delete unreachable {}", network.subnet()),
            "ip link delete lgaaaa01-gw".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
        ] {
            run(&damage);
            network.reconcile().await.unwrap();
            assert_reaches(&a, &to);
            assert_same(&lab.host_state(), &before, &damage);
        }
    });
}

#[test]
fn an_instance_whose_namespace_was_unmounted_gets_another() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let before = network.attach(&instance(1), &[]).await.unwrap();
        // A child of the pool's that is about to run its program may hold it open for a moment yet.
        let netns = before.netns.canonicalize().unwrap();
        nix::mount::umount2(&netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
        network.reconcile().await.unwrap();
        let after = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        assert_reaches(&after, &format!("{SERVER}:80"));
    });
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    on_a_host(async |lab| {
        let _network = lab.open("aaaa01").await;
        let error = Network::open(lab.config("aaaa01")).await.err().unwrap();
        assert!(matches!(error, OpenNetworkError::AlreadyOpen { .. }), "{error}");
    });
}

#[test]
fn a_port_53_that_is_taken_is_said_in_plain_words() {
    on_a_host(async |lab| {
        let _taken = listen_udp(&here(), "0.0.0.0:53");
        let error = Network::open(lab.config("aaaa01")).await.err().unwrap();
        assert!(error.to_string().contains("another resolver"), "{error}");
    });
}

/// Says only which lines differ: the whole is long.
#[track_caller]
fn assert_same(after: &str, before: &str, damage: &str) {
    let missing_in = |other: &str, lines: &str| -> Vec<String> {
        let others: Vec<&str> = other.lines().collect();
        lines.lines().filter(|line| !others.contains(line)).map(str::to_owned).collect()
    };
    let (gone, new) = (missing_in(after, before), missing_in(before, after));
    assert!(after == before, "after {damage}: gone {gone:#?}, new {new:#?}");
}

/// gVisor takes the address away from the namespace, since its own kernel has it.
#[test]
fn what_a_container_took_apart_is_whole_for_the_next() {
    on_a_host(async |lab| {
        serve_tcp(&lab.internet(), &format!("{SERVER}:80"));
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        within(&attached.netns, || run("ip address flush dev eth0"));
        assert_cut_off(&attached, format!("{SERVER}:80"));
        assert_eq!(network.attach(&instance(1), &[]).await.unwrap(), attached);
        assert_reaches(&attached, &format!("{SERVER}:80"));
        network.remove_all().await.unwrap();
    });
}
