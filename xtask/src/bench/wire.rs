//! `bench wire`: how much the wire of `longshore world` carries, and what of a core that takes.
//!
//! Built as this program is, without optimization: the product's carries more.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use longshore_world::{Carrier, Machine, Place, Subnet, Wire};

/// For how long.
#[derive(Args)]
pub struct Options {
    /// How long each kind of traffic goes on, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

const PORT: u16 = 4700;
const SMALL: usize = 64;

/// Two machines, and what is between them.
struct World {
    carrier: Carrier,
    machines: [Machine; 2],
    subnet: Subnet,
}

impl World {
    /// At these places.
    fn start(places: [&str; 2]) -> Result<Self> {
        let subnet = Subnet::take()?;
        let places = [Place::find(places[0])?, Place::find(places[1])?];
        let machines =
            [Machine::start("one", subnet.address(0))?, Machine::start("two", subnet.address(1))?];
        let links: Vec<_> = machines.iter().map(Machine::link).collect();
        let carrier = Carrier::start(Wire::new(&places, vec![0, 1], 1), &subnet, &links)?;
        Ok(Self { carrier, machines, subnet })
    }
}

/// Measures both kinds of traffic.
pub fn run(options: &Options) -> Result<()> {
    let length = Duration::from_secs(options.seconds);
    let mut figures = BTreeMap::new();
    println!("{:<34} {:>12} {:>14} {:>9}", "traffic", "Mbit/s", "packets/s", "of a core");
    let mut show = |what: &str,
                    key: &'static str,
                    (n_bytes, n_packets, cpu): (u64, u64, Duration)| {
        let each_second = |count: u64| count as f64 / length.as_secs_f64();
        let mbit = each_second(n_bytes * 8) / 1e6;
        let share = cpu.as_secs_f64() / length.as_secs_f64();
        println!("{what:<34} {mbit:>12.0} {:>14.0} {share:>9.2}", each_second(n_packets));
        figures
            .insert(key, if key.ends_with("mbit_per_s") { mbit } else { each_second(n_packets) });
    };
    show(
        "one stream, in one place",
        "near_mbit_per_s",
        stream(&World::start(["ams"; 2])?, length)?,
    );
    let far = World::start(["ams", "lon"])?;
    show("one stream, Amsterdam to London", "far_mbit_per_s", stream(&far, length)?);
    show("datagrams of 64 bytes", "small_packets_per_s", datagrams(&far, length)?);
    super::print_machine();
    super::print_result("wire", &figures);
    Ok(())
}

/// The bytes that one connection brought over, the packets that the wire moved for that, and the time of
/// a processor that the wire took.
fn stream(world: &World, length: Duration) -> Result<(u64, u64, Duration)> {
    let address = (world.subnet.address(1), PORT);
    let listener = world.machines[1].within(|| TcpListener::bind(address))??;
    let (before, cpu) = (world.carrier.tally(), wire_cpu()?);
    let n_bytes = std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let mut stream = world.machines[0].within(|| TcpStream::connect(address))??;
            let end = Instant::now() + length;
            let chunk = vec![7; 256 << 10];
            while Instant::now() < end {
                stream.write_all(&chunk)?;
            }
            Ok(())
        });
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 256 << 10];
        let mut n_bytes = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => n_bytes += u64::try_from(length)?,
            }
        }
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        anyhow::Ok(n_bytes)
    })?;
    // Each is read once and written once.
    let n_packets = (world.carrier.tally().n_frames - before.n_frames) / 2;
    Ok((n_bytes, n_packets, wire_cpu()? - cpu))
}

/// The same for small packets, counted where they arrive.
fn datagrams(world: &World, length: Duration) -> Result<(u64, u64, Duration)> {
    let at = |idx: usize| {
        let address = (world.subnet.address(idx), PORT);
        world.machines[idx].within(|| UdpSocket::bind(address))
    };
    let (from, to) = (at(0)??, at(1)??);
    to.set_read_timeout(Some(Duration::from_millis(500)))?;
    let cpu = wire_cpu()?;
    let n_arrived = std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + length;
            while Instant::now() < end {
                // A full link says so, and the next may pass.
                let _ = from.send_to(&[0; SMALL], (world.subnet.address(1), PORT));
            }
        });
        let mut n_arrived = 0;
        while to.recv(&mut [0; SMALL]).is_ok() {
            n_arrived += 1;
        }
        n_arrived
    });
    Ok((n_arrived * u64::try_from(SMALL)?, n_arrived, wire_cpu()? - cpu))
}

/// The time of a processor that threads called `wire` have taken so far.
fn wire_cpu() -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")?.flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == "wire" {
            let first = read("schedstat");
            let first = first.split(' ').next().unwrap_or_default();
            nanos += first.parse::<u64>().context("the kernel counts no time of threads")?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}
