//! A host, an internet and the wire between them, made of namespaces that nobody else has.
//!
//! Each test runs on a thread that has left the machine's network and mounts for its own, and with
//! it everything that the thread starts. So the machine's tables and links stay as they are,
//! nothing leaves it, and whatever a failed test leaves goes with the thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_network::{AgentId, Attachment, Network, NetworkConfig};
use longshore_types::{EgressRule, InstanceId};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// The host's address on the wire.
pub const HOST: &str = "203.0.113.1";
/// A server of the internet.
pub const SERVER: &str = "198.51.100.10";
/// Where the internet's resolver is.
pub const RESOLVER: &str = "198.51.100.53:53";
/// Addresses that are not of the internet, and that the host reaches all the same.
pub const NOT_PUBLIC: [&str; 8] = [
    "10.9.9.9",
    "100.100.100.200",
    "169.254.169.254",
    "172.16.9.9",
    "172.31.9.9",
    "192.0.0.9",
    "192.168.9.9",
    "198.18.9.9",
];

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence is taken for a refusal. A packet here takes microseconds, and a late one would
/// make a test pass, not fail.
const SILENCE: Duration = Duration::from_millis(400);

pub struct Lab {
    dir: PathBuf,
}

/// Runs a test on a host of its own.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().to_owned();
    let done = std::thread::spawn(move || {
        leave_the_machine(&dir);
        let lab = Lab { dir };
        lab.connect_the_internet();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(lab));
        runtime.shutdown_timeout(PATIENCE);
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

fn leave_the_machine(dir: &Path) {
    assert!(nix::unistd::geteuid().is_root(), "this test must run as root");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// Runs a program of the system and gives what it prints; its failure is the test's.
pub fn run(line: &str) -> String {
    let (output, errors, is_fine) = try_run(line);
    assert!(is_fine, "{line}: {errors}");
    output
}

pub fn try_run(line: &str) -> (String, String, bool) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; apt-get install nftables iproute2 iptables procps")
    });
    let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    (out, err, output.status.success())
}

/// Does something in another network namespace, on a thread that ends there.
pub fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Lab {
    /// The lab that the process was started in, seen from a child.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace of everything that is not the host.
    pub fn internet(&self) -> PathBuf {
        self.dir.join("internet")
    }

    fn connect_the_internet(&self) {
        let internet = self.internet();
        File::create(&internet).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let own = Some("/proc/thread-self/ns/net");
                mount(own, &internet, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
                run("ip link set lo up");
                run("ip link add wire type veth peer name uplink");
                run("ip address add 203.0.113.2/24 dev wire");
                run("ip link set wire up");
                for address in [SERVER, "198.51.100.53"].iter().chain(&NOT_PUBLIC) {
                    run(&format!("ip address add {address}/32 dev lo"));
                }
            });
        });
        let host = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        within(&internet, || run(&format!("ip link set uplink netns {host}")));
        run("ip link set lo up");
        run(&format!("ip address add {HOST}/24 dev uplink"));
        run("ip link set uplink up");
        run("ip route add default via 203.0.113.2");
    }

    pub fn config(&self, agent: &str) -> NetworkConfig {
        let agent: AgentId = agent.parse().unwrap();
        let dir = |kind: &str| self.dir.join(format!("{agent}-{kind}"));
        let mut config = NetworkConfig::new(
            agent,
            dir("run"),
            dir("state"),
            env!("CARGO_BIN_EXE_network-test-holder").into(),
        );
        config.upstream_dns = Some(vec![RESOLVER.parse().unwrap()]);
        config
    }

    pub async fn open(&self, agent: &str) -> Network {
        Network::open(self.config(agent)).await.unwrap()
    }

    /// Everything in the host's network that an agent may have made, as text. Links and routes are
    /// sorted: the kernel lists them in the order in which they came.
    pub fn host_state(&self) -> String {
        let mut lines: Vec<String> = run("ip -o link").lines().map(link_name).collect();
        for kind in ["unicast", "unreachable", "local"] {
            let routes = run(&format!("ip -4 route show table all type {kind}"));
            lines.extend(routes.lines().map(str::to_owned));
        }
        lines.sort();
        // Only our own: those of the machine that the test began with come and go.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let own = format!(" {}/", self.dir.display());
        let is_own_netns = |line: &&str| line.contains("nsfs") && line.contains(&own);
        let n_netns = mounts.lines().filter(is_own_netns).count();
        lines.push(format!("{n_netns} namespaces mounted"));
        lines.push(run("nft list ruleset"));
        lines.join("\n")
    }
}

/// The name of a link, without its number, which is never the same twice.
fn link_name(line: &str) -> String {
    let name = line.split(": ").nth(1).unwrap();
    name.split('@').next().unwrap().to_owned()
}

pub fn instance(n: usize) -> InstanceId {
    format!("web-{n:08}").parse().unwrap()
}

pub fn egress(rules: &[&str]) -> Vec<EgressRule> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

/// Answers TCP connections in a namespace with the address that they came from.
pub fn serve_tcp(netns: &Path, address: &str) {
    let listener = within(netns, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            // Whoever was only probing may be gone.
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// Connects to an address from a namespace, and gives the address that the server saw.
pub fn dial(netns: &Path, to: impl std::fmt::Display) -> io::Result<Ipv4Addr> {
    let to: SocketAddr = to.to_string().parse().unwrap();
    within(netns, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut seen = String::new();
        stream.read_to_string(&mut seen)?;
        seen.parse().map_err(io::Error::other)
    })
}

/// The namespace of the calling thread.
pub fn here() -> PathBuf {
    PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()))
}

#[track_caller]
pub fn assert_reaches(from: &Attachment, to: &str) {
    if let Err(error) = dial(&from.netns, to) {
        panic!("{} does not reach {to}: {error}", from.address);
    }
}

#[track_caller]
pub fn assert_cut_off(from: &Attachment, to: impl std::fmt::Display) {
    assert!(!connects(&from.netns, &to), "{} connects to {to}", from.address);
}

/// Whether something in a namespace can so much as connect to an address.
pub fn connects(netns: &Path, to: impl std::fmt::Display) -> bool {
    let to: SocketAddr = to.to_string().parse().unwrap();
    within(netns, || TcpStream::connect_timeout(&to, SILENCE).is_ok())
}

/// A socket that datagrams can be awaited on.
pub fn listen_udp(netns: &Path, address: &str) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
