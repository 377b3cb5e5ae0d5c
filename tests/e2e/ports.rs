//! Ports of instances, reached from the user's machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::http::Request;
use longshore_e2e::image::BUSYBOX_PORT;
use longshore_e2e::process::signal;
use longshore_e2e::{Platform, eventually};
use longshore_types::InstancePhase;
use rustix::process::Signal;

use crate::scene::{script, web, with_web};

/// A `port-forward` that runs, and where it listens.
struct Forward {
    child: Child,
    locals: Vec<SocketAddr>,
}

impl Forward {
    fn start(platform: &Platform, arguments: &[&str], n_ports: usize) -> Self {
        let mut command = platform.client(&[&["port-forward"], arguments].concat());
        let streams = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn().unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let local = |line: String| line.split(" -> ").next().unwrap().parse().unwrap();
        let locals = lines.take(n_ports).map(|line| local(line.unwrap())).collect();
        Self { child, locals }
    }

    /// Interrupts it: what it said.
    fn end(mut self) -> String {
        signal(self.child.id().cast_signed(), Signal::INT).unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{said}");
        said
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn page(address: SocketAddr) -> Result<String> {
    let response = Request::get("any", "/").send(address)?;
    ensure!(response.status == 200, "{}", response.status);
    Ok(response.text())
}

/// Sends bytes, says that these were all, and reads to the end.
fn echo(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<()> {
            writer.write_all(bytes)?;
            Ok(writer.shutdown(Shutdown::Write)?)
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        writing.join().ok().context("the writer panicked")??;
        Ok(back)
    })
}

#[test]
fn ports_of_an_instance_are_reached_by_many_at_once() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let port = format!(":{BUSYBOX_PORT}");
    let forward = Forward::start(&platform, &["web", &port, ":9999"], 2);
    let (local, deaf) = (forward.locals[0], forward.locals[1]);
    assert!(local.ip().is_loopback());
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| assert_eq!(page(local).unwrap(), "one"));
        }
    });
    // Where nobody listens: the connection ends, and the reason is told.
    let mut nothing = String::new();
    TcpStream::connect(deaf).unwrap().read_to_string(&mut nothing).unwrap();
    assert_eq!(nothing, "");
    // The instance that takes the place of a stopped one is found.
    let first = platform.instances("web").unwrap().remove(0);
    platform.run(&["stop", first.id().as_str()]).ok();
    platform
        .wait_for_instance("web", "took its place", |next| {
            next.id() != first.id() && next.observed.phase == InstancePhase::Healthy
        })
        .unwrap();
    eventually("the next instance answers", || Ok(page(local).ok())).unwrap();
    let said = forward.end();
    assert!(said.contains("port 9999 of web-") && said.contains("does not answer"), "{said}");
    platform.finish();
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let platform = with_web();
    platform.deploy(&script("echo", "exec busybox nc -ll -p 7000 -e cat")).unwrap();
    let forward = Forward::start(&platform, &["echo", "0:7000"], 1);
    let local = forward.locals[0];
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; 5 << 20];
    random.fill(&mut bytes);
    // It is there a moment after its instance is.
    eventually("the program listens", || Ok((echo(local, b"here")? == b"here").then_some(())))
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(echo(local, &bytes).unwrap() == bytes, "other bytes"));
        }
    });
    forward.end();
    platform.finish();
}
