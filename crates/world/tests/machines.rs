//! Machines of a world speak to each other through the kernel. As root.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use longshore_world::{Carrier, Machine, Place, Slowness, Subnet, Wire, here};

const PORT: u16 = 4700;
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than a packet that passes would take.
const SILENCE: Duration = Duration::from_millis(300);

/// Two places with a machine each, and this machine at the first.
struct World {
    carrier: Carrier,
    machines: [Machine; 3],
    /// Given back last, when nothing has its addresses and names any more.
    subnet: Subnet,
}

fn world(from: &str, to: &str) -> World {
    let subnet = Subnet::take().unwrap();
    let places = [from, to].map(|code| Place::find(code).unwrap());
    let machines = [
        Machine::start("one", subnet.address(0)).unwrap(),
        Machine::start("two", subnet.address(1)).unwrap(),
        here(&format!("lsw{}", subnet.number()), subnet.address(2)).unwrap(),
    ];
    let wire = Wire::new(&places, vec![0, 1, 0], 1);
    let links: Vec<_> = machines.iter().map(Machine::link).collect();
    let carrier = Carrier::start(wire, &subnet, &links).unwrap();
    World { carrier, machines, subnet }
}

impl World {
    /// A port of the second machine that sends back what it receives, once to each of `n_clients`.
    fn echo(&self, n_clients: usize) -> SocketAddr {
        let address = SocketAddr::from((self.subnet.address(1), PORT));
        let listener = self.machines[1].within(|| TcpListener::bind(address)).unwrap().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(n_clients).flatten() {
                let mut reader = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut reader, &mut &stream);
            }
        });
        address
    }
}

/// What it takes until a connection is there.
fn connect(address: SocketAddr) -> (TcpStream, Duration) {
    let began = Instant::now();
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    (stream, began.elapsed())
}

fn round_trip(mut stream: &TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let mut back = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut back).unwrap();
    });
    back
}

#[test]
fn a_connection_takes_its_round_trip_and_all_bytes_come_whole() {
    let world = world("ams", "nyc");
    let address = world.echo(2);
    let [ams, nyc] = ["ams", "nyc"].map(|code| Place::find(code).unwrap());
    // From another machine, and from this one.
    let (stream, took) = world.machines[0].within(|| connect(address)).unwrap();
    assert!(took >= 2 * ams.one_way_to(nyc), "{took:?}");
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
    assert!(round_trip(&stream, &bytes) == bytes);
    drop(stream);
    let (stream, took) = connect(address);
    assert!(took >= 2 * ams.one_way_to(nyc), "{took:?}");
    assert_eq!(round_trip(&stream, b"hello"), b"hello");
    assert!(world.carrier.tally().n_bytes >= 8_000_000, "there and back, in and out");
}

#[test]
fn what_is_cut_is_silent_and_what_is_mended_goes_on() {
    let world = world("ams", "lon");
    let (one, two) = (world.subnet.address(0), world.subnet.address(1));
    let socket = |machine: usize, address: Ipv4Addr| {
        let socket = world.machines[machine].within(|| UdpSocket::bind((address, PORT)));
        socket.unwrap().unwrap()
    };
    let (from, to) = (socket(0, one), socket(1, two));
    let pass = |text: &[u8], wait: Duration| {
        from.send_to(text, (two, PORT)).unwrap();
        to.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 16];
        to.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    };
    assert_eq!(pass(b"one", PATIENCE).as_deref(), Some(&b"one"[..]));
    world.carrier.wire().set_cut(0, 1, true);
    assert_eq!(pass(b"two", SILENCE), None);
    world.carrier.wire().set_cut(0, 1, false);
    assert_eq!(pass(b"three", PATIENCE).as_deref(), Some(&b"three"[..]));
    // A tenth of a second more each way.
    let delay = Duration::from_millis(100);
    world.carrier.wire().set_slowness(0, 1, Slowness { delay, ..Slowness::default() });
    let began = Instant::now();
    assert_eq!(pass(b"four", PATIENCE).as_deref(), Some(&b"four"[..]));
    assert!(began.elapsed() >= delay);
}

#[test]
fn nothing_is_left_when_a_world_is_dropped() {
    let link = {
        let world = world("ams", "lon");
        format!("/sys/class/net/lsw{}", world.subnet.number())
    };
    // The kernel takes a device away some time after its last descriptor.
    let deadline = Instant::now() + PATIENCE;
    while std::path::Path::new(&link).exists() {
        assert!(Instant::now() < deadline, "{link} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}
