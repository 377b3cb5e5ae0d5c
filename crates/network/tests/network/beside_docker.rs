//! Firewalls that drop by default, set up the way dockerd and ufw do it.

use crate::dns::{ask_udp, serve_dns};
use crate::lab::*;

const QUESTION: &[u8] = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01";

fn drop_by_default(iptables: &str) {
    run(&format!("{iptables} -N DOCKER-USER"));
    run(&format!("{iptables} -A FORWARD -j DOCKER-USER"));
    run(&format!("{iptables} -P FORWARD DROP"));
    // ufw: replies and the loopback only.
    run(&format!("{iptables} -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"));
    run(&format!("{iptables} -A INPUT -i lo -j ACCEPT"));
    run(&format!("{iptables} -P INPUT DROP"));
}

fn check(iptables: &'static str) {
    on_a_host(async move |lab| {
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        serve_dns(&lab.internet(), RESOLVER, 1);
        let to = format!("{SERVER}:80");

        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        assert_reaches(&attached, &to);
        let before = run(&format!("{iptables} -S"));
        assert!(!before.contains("longshore"), "nothing is added to a firewall that lets through");

        // docker starts after the agent.
        drop_by_default(iptables);
        assert_cut_off(&attached, &to);
        network.reconcile().await.unwrap();
        network.reconcile().await.unwrap();
        assert_reaches(&attached, &to);
        ask_udp(&attached, QUESTION).unwrap();
        let rules = run(&format!("{iptables} -S"));
        assert_eq!(rules.matches("longshore-aaaa01-").count(), 4, "{rules}");
        drop(network);

        // The agent starts after docker, and a second one beside it.
        let network = lab.open("aaaa01").await;
        let other = lab.open("aaaa02").await;
        assert_reaches(&other.attach(&instance(2), &[]).await.unwrap(), &to);
        network.remove_all().await.unwrap();
        let rules = run(&format!("{iptables} -S"));
        assert!(!rules.contains("longshore-aaaa01-"), "{rules}");
        assert_eq!(rules.matches("longshore-aaaa02-").count(), 4, "{rules}");
    });
}

#[test]
fn instances_work_when_iptables_nft_drops() {
    check("iptables-nft");
}

#[test]
fn instances_work_when_iptables_legacy_drops() {
    check("iptables-legacy");
}
