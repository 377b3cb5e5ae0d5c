//! What an instance reaches, and who reaches it: one test per rule.

use std::net::UdpSocket;

use crate::lab::*;

#[test]
fn an_instance_reaches_the_internet_and_is_seen_as_its_host() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        let seen = dial(&attached.netns, format!("{SERVER}:80")).unwrap();
        assert_eq!(seen.to_string(), HOST);
    });
}

#[test]
fn the_host_reaches_an_instance_and_is_seen_as_the_gateway() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&attached.netns, "0.0.0.0:8080");
        let seen = dial(&here(), format!("{}:8080", attached.address)).unwrap();
        assert_eq!(seen, network.gateway());
    });
}

#[test]
fn an_instance_reaches_itself_and_binds_low_ports() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&attached.netns, "0.0.0.0:80");
        assert_reaches(&attached, "127.0.0.1:80");
        assert_reaches(&attached, &format!("{}:80", attached.address));
        let read =
            |key: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).unwrap();
        let lowest = within(&attached.netns, || read("ip_unprivileged_port_start"));
        assert_eq!(lowest.trim(), "0");
    });
}

#[test]
fn an_instance_does_not_reach_another_one() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let a = network.attach(&instance(1), &[]).await.unwrap();
        let b = network.attach(&instance(2), &[]).await.unwrap();
        serve_tcp(&b.netns, "0.0.0.0:8080");
        let to = format!("{}:8080", b.address);
        dial(&here(), &to).expect("the host reaches it");
        assert_cut_off(&a, &to);
    });
}

#[test]
fn no_egress_rule_opens_another_instance() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let a = network.attach(&instance(1), &egress(&["0.0.0.0/0"])).await.unwrap();
        let b = network.attach(&instance(2), &egress(&["0.0.0.0/0"])).await.unwrap();
        serve_tcp(&b.netns, "0.0.0.0:8080");
        assert_cut_off(&a, format!("{}:8080", b.address));
    });
}

#[test]
fn an_instance_does_not_reach_an_instance_or_the_resolver_of_another_agent() {
    on_a_host(async |lab| {
        let ours = lab.open("aaaa01").await;
        let theirs = lab.open("aaaa02").await;
        let b = theirs.attach(&instance(2), &[]).await.unwrap();
        serve_tcp(&b.netns, "0.0.0.0:8080");
        for rules in [vec![], egress(&["0.0.0.0/0"])] {
            let a = ours.attach(&instance(1), &rules).await.unwrap();
            assert_cut_off(&a, format!("{}:8080", b.address));
            assert_cut_off(&a, format!("{}:53", theirs.gateway()));
        }
    });
}

#[test]
fn an_instance_does_not_reach_the_addresses_of_the_host() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        run("ip address add 198.51.100.99/32 dev lo");
        serve_tcp(&here(), "0.0.0.0:22");
        for address in [HOST, "198.51.100.99", &network.gateway().to_string()] {
            let to = format!("{address}:22");
            dial(&here(), &to).expect("the host reaches itself");
            assert_cut_off(&attached, &to);
        }
    });
}

#[test]
fn an_instance_does_not_reach_link_local_or_private_networks() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        for address in NOT_PUBLIC {
            let to = format!("{address}:80");
            dial(&here(), &to).expect("the host reaches it");
            assert_cut_off(&attached, &to);
        }
    });
}

#[test]
fn a_port_that_docker_publishes_does_not_lead_around_the_rules() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&lab.internet(), "0.0.0.0:80");
        run("nft add table ip publish");
        run("nft add chain ip publish pre { type nat hook prerouting priority dstnat ; }");
        run(&format!("nft add rule ip publish pre ip daddr {HOST} tcp dport 80 dnat to {SERVER}"));
        assert_cut_off(&attached, format!("{HOST}:80"));
    });
}

#[test]
fn an_egress_rule_opens_exactly_its_network_and_port() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let rules = egress(&["10.9.9.9:5432/tcp", "192.168.0.0/16"]);
        let a = network.attach(&instance(1), &rules).await.unwrap();
        let b = network.attach(&instance(2), &[]).await.unwrap();
        for port in [80, 5432] {
            serve_tcp(&lab.internet(), &format!("0.0.0.0:{port}"));
        }
        let udp = listen_udp(&lab.internet(), "10.9.9.9:5432");
        assert_reaches(&a, "10.9.9.9:5432");
        assert_reaches(&a, "192.168.9.9:5432");
        assert_reaches(&a, "192.168.9.9:80");
        assert_cut_off(&a, "10.9.9.9:80");
        assert_cut_off(&a, "172.16.9.9:5432");
        assert_cut_off(&b, "10.9.9.9:5432");

        // The list is replaced as a whole, and for UDP the port counts as well.
        let a = network.attach(&instance(1), &egress(&["10.9.9.9:5432/udp"])).await.unwrap();
        assert_cut_off(&a, "10.9.9.9:5432");
        assert_cut_off(&a, "192.168.9.9:80");
        within(&a.netns, || {
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", "10.9.9.9:5432").unwrap();
        });
        let mut buffer = [0; 16];
        let (len, _) = udp.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"hello");

        let a = network.attach(&instance(1), &[]).await.unwrap();
        assert_cut_off(&a, "10.9.9.9:5432");
    });
}

#[test]
fn an_egress_rule_that_covers_the_host_opens_the_host() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let rule = format!("{HOST}:5432/tcp");
        let attached = network.attach(&instance(1), &egress(&[&rule])).await.unwrap();
        for port in [22, 5432] {
            serve_tcp(&here(), &format!("0.0.0.0:{port}"));
        }
        assert_reaches(&attached, &format!("{HOST}:5432"));
        assert_cut_off(&attached, format!("{HOST}:22"));
    });
}

#[test]
fn an_egress_list_ends_with_its_instance() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        network.attach(&instance(1), &egress(&["10.9.9.9"])).await.unwrap();
        network.detach(&instance(1)).await.unwrap();
        let rules = run("nft list table inet longshore_aaaa01");
        assert!(!rules.contains("10.9.9.9") && !rules.contains("egress_"), "{rules}");
    });
}

#[test]
fn a_spoofed_source_is_dropped() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let a = network.attach(&instance(1), &[]).await.unwrap();
        let b = network.attach(&instance(2), &[]).await.unwrap();
        let server = listen_udp(&lab.internet(), &format!("{SERVER}:9"));
        let sources = ["8.8.8.8", HOST, &b.address.to_string(), &network.gateway().to_string()];
        within(&a.netns, || {
            for source in sources {
                run(&format!("ip address add {source}/32 dev lo"));
                let socket = UdpSocket::bind(format!("{source}:0")).unwrap();
                socket.send_to(b"spoofed", format!("{SERVER}:9")).unwrap();
            }
            let socket = UdpSocket::bind(format!("{}:0", a.address)).unwrap();
            socket.send_to(b"genuine", format!("{SERVER}:9")).unwrap();
        });
        // Sent on one wire, they would have arrived in this order.
        let mut buffer = [0; 16];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"genuine");
        assert_eq!(from.ip().to_string(), HOST);
    });
}

#[test]
fn ipv6_is_off_and_dropped_where_it_is_turned_on() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        within(&attached.netns, || {
            let addresses = run("ip -6 address");
            assert_eq!(addresses, "", "{addresses}");
        });
        let links = run("ip -o link");
        let slot = attached.address.octets()[3];
        let link = format!("lgaaaa01-{slot}");
        assert!(links.contains(&link), "{link} is not among {links}");
        run(&format!("sysctl -qw net.ipv6.conf.{link}.disable_ipv6=0"));
        run(&format!("ip address add fd00::1/64 dev {link} nodad"));
        within(&attached.netns, || {
            run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0");
            run("ip address add fd00::2/64 dev eth0 nodad");
        });
        serve_tcp(&here(), "[::]:8080");
        assert_cut_off(&attached, "[fd00::1]:8080");
        // It is the packet rules, and not a mistake of the test, that kept them apart.
        run("nft delete table inet longshore_aaaa01");
        eventually("IPv6 works without them", || connects(&attached.netns, "[fd00::1]:8080")).await;
    });
}

#[test]
fn nobody_reaches_an_instance_from_outside() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        serve_tcp(&attached.netns, "0.0.0.0:8080");
        within(&lab.internet(), || run(&format!("ip route add {} via {HOST}", network.subnet())));
        let to = format!("{}:8080", attached.address);
        dial(&here(), &to).expect("the host reaches it");
        assert!(!connects(&lab.internet(), &to));
        assert!(!connects(&lab.internet(), format!("{}:53", network.gateway())));
        assert!(connects(&attached.netns, format!("{}:53", network.gateway())));
    });
}

#[test]
fn nobody_outside_passes_for_an_instance() {
    on_a_host(async |lab| {
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        let host = listen_udp(&here(), &format!("{HOST}:9"));
        within(&lab.internet(), || {
            run(&format!("ip address add {}/32 dev lo", attached.address));
            for (source, text) in
                [(attached.address.to_string(), "spoofed"), (SERVER.into(), "genuine")]
            {
                let socket = UdpSocket::bind(format!("{source}:0")).unwrap();
                socket.send_to(text.as_bytes(), format!("{HOST}:9")).unwrap();
            }
        });
        let mut buffer = [0; 16];
        let (len, _) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"genuine");
    });
}
