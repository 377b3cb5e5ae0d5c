//! From inside an instance: what of the platform, its machine and its neighbours can be reached or
//! seen. The rules one by one are tested in the network crate; this is the platform as a whole.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;

use longshore_api::v1::InstanceView;
use longshore_e2e::Platform;
use longshore_e2e::image::BUSYBOX_PORT;
use serde_json::{Value, json};

use crate::scene::{but, script, web, with_web};

/// Not the machine's own: where clouds tell machines their secrets.
const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// Those of the targets to which a program in the instance can open a connection.
fn reached(platform: &Platform, instance: &InstanceView, targets: &[SocketAddrV4]) -> Vec<String> {
    let tries: Vec<String> = targets
        .iter()
        .map(|target| {
            let (ip, port) = (target.ip(), target.port());
            format!("nc -w 2 {ip} {port} -e /bin/id >/dev/null 2>&1 && echo {target}; ")
        })
        .collect();
    let script = tries.concat() + "true";
    let id = instance.id().as_str();
    let found = platform.run(&["exec", id, "--", "/bin/sh", "-c", &script]).ok();
    found.lines().map(str::to_owned).collect()
}

/// What a shell script in the instance prints.
fn prints(platform: &Platform, instance: &InstanceView, script: &str) -> String {
    platform.run(&["exec", instance.id().as_str(), "--", "/bin/sh", "-c", script]).ok()
}

/// Every IPv4 address of this machine, loopback's and the gateways of agents included.
fn host_addresses() -> Vec<Ipv4Addr> {
    let output = Command::new("ip").args(["-json", "-4", "address"]).output();
    let output = output.expect("install the package iproute2");
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    let addresses = links.as_array().unwrap().iter().flat_map(|link| {
        link["addr_info"].as_array().into_iter().flatten().map(|info| info["local"].as_str())
    });
    addresses.map(|address| address.unwrap().parse().unwrap()).collect()
}

fn gateway(platform: &Platform, instance: &InstanceView) -> Ipv4Addr {
    let resolver = prints(platform, instance, "cat /etc/resolv.conf");
    resolver.trim().strip_prefix("nameserver ").unwrap().parse().unwrap()
}

fn address(instance: &InstanceView) -> Ipv4Addr {
    instance.observed.address.unwrap()
}

/// A service of the machine that listens on all of its addresses.
fn service() -> (TcpListener, u16) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn an_instance_reaches_nothing_of_the_platform_its_machine_or_its_neighbours() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    platform.deploy(&web("other", 1)).unwrap();
    let neighbour = platform.instances("other").unwrap().remove(0);
    let [first, second] = <[InstanceView; 2]>::try_from(platform.instances("web").unwrap())
        .unwrap_or_else(|found| panic!("{found:?}"));
    let gateway = gateway(&platform, &first);

    let (listener, service_port) = service();
    let endpoints = platform.endpoints();
    let ports = [endpoints.api.as_str(), &endpoints.registry, &endpoints.ingress]
        .map(|endpoint| endpoint.rsplit(':').next().unwrap().parse().unwrap());
    let mut targets = vec![METADATA];
    for host in host_addresses() {
        targets.extend(ports.iter().map(|port| SocketAddrV4::new(host, *port)));
        targets.push(SocketAddrV4::new(host, service_port));
    }
    assert!(targets.iter().any(|target| *target.ip() == gateway), "{targets:?}");
    for instance in [&second, &neighbour] {
        targets.push(SocketAddrV4::new(address(instance), BUSYBOX_PORT));
    }
    // What is cut off from the instance answers everybody else, and the instance is not cut off
    // from what it needs.
    for target in &targets[1..] {
        let loopback_only = ports.contains(&target.port()) && !target.ip().is_loopback();
        let answers = TcpStream::connect(SocketAddr::from(*target)).is_ok();
        assert_eq!(answers, !loopback_only, "{target} from the machine");
    }
    let resolver = SocketAddrV4::new(gateway, 53);
    let own = SocketAddrV4::new(address(&first), BUSYBOX_PORT);
    assert_eq!(
        reached(&platform, &first, &[resolver, own]),
        [resolver, own].map(|t| t.to_string())
    );
    while listener.set_nonblocking(true).is_ok() && listener.accept().is_ok() {}

    assert_eq!(reached(&platform, &first, &targets), Vec::<String>::new());
    assert!(listener.accept().is_err(), "a connection came through");
    platform.finish();
}

#[test]
fn what_egress_allows_is_reached_and_nothing_beside_it() {
    let platform = with_web();
    platform.deploy(&web("other", 1)).unwrap();
    let neighbour = platform.instances("other").unwrap().remove(0);
    let gateway = gateway(&platform, &neighbour);
    let (_allowed, port) = service();
    let (_refused, other_port) = service();
    let allow = json!({"egress": {"allow": [format!("{gateway}/32:{port}/tcp")]}});
    platform.deploy(&but(web("web", 1), &allow)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0);
    let allowed = SocketAddrV4::new(gateway, port);
    let targets = [
        allowed,
        SocketAddrV4::new(gateway, other_port),
        SocketAddrV4::new(address(&neighbour), BUSYBOX_PORT),
        METADATA,
    ];
    assert_eq!(reached(&platform, &instance, &targets), [allowed.to_string()]);

    // Everything is still not the neighbours, nor what listens on loopback alone.
    let everything = json!({"egress": {"allow": ["0.0.0.0/0"]}});
    platform.deploy(&but(web("web", 1), &everything)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0);
    let api = platform.endpoints().api.rsplit(':').next().unwrap().parse().unwrap();
    let targets = [
        allowed,
        SocketAddrV4::new(gateway, api),
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, api),
        SocketAddrV4::new(address(&neighbour), BUSYBOX_PORT),
    ];
    assert_eq!(reached(&platform, &instance, &targets), [allowed.to_string()]);
    platform.finish();
}

#[test]
fn no_socket_descriptor_or_secret_of_the_platform_is_in_an_instance() {
    let platform = with_web();
    platform.deploy(&script("idle", "while :; do sleep 1000; done")).unwrap();
    let instance = platform.instances("idle").unwrap().remove(0);
    let sockets = "busybox find / -path /proc -prune -o -type s -print";
    assert_eq!(prints(&platform, &instance, sockets), "");
    let unix = prints(&platform, &instance, "cat /proc/net/unix");
    assert_eq!(unix.lines().count(), 1, "more than the heading: {unix}");

    // The first process and one that exec started: nothing but null and the pipes of the output,
    // save the directory that is being listed.
    let descriptors =
        "cd /proc; for p in 1 self; do ls -l $p/fd | busybox sed -n 's/.* -> //p'; done";
    for target in prints(&platform, &instance, descriptors).lines() {
        let harmless = target == "/dev/null" || target.starts_with("pipe:[");
        assert!(harmless || target.starts_with("/proc/"), "a descriptor of {target}");
    }
    let processes = prints(&platform, &instance, "cat /proc/[0-9]*/cmdline");
    assert!(!processes.contains("longshore"), "{processes:?}");
    let known = prints(&platform, &instance, "cat /proc/[0-9]*/environ /proc/self/mountinfo");
    assert!(known.contains("LONGSHORE_INSTANCE"), "{known:?}");
    let run_dir = platform.dir().join("run").display().to_string();
    for secret in [platform.token(), &format!("{run_dir}/node.sock"), "admin-token"] {
        assert!(!known.contains(secret), "{secret} in {known:?}");
    }
    platform.finish();
}
