//! Machines: network namespaces with one link, to the wire.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::LinkUnspec;

use crate::tun;

/// The name of the link on a machine; nothing else is there to be told from.
const LINK: &str = "wire0";
/// Of the network for measurements, which nobody routes, the half that worlds take from.
const NETWORK: [u8; 2] = [198, 18];

/// A machine could not be made, or not be entered.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {name}")]
pub struct MachineError {
    doing: &'static str,
    name: String,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(doing: &'static str, name: &str) -> impl FnOnce(E) -> MachineError {
    let name = name.to_owned();
    move |source| MachineError { doing, name, source: source.into() }
}

/// 254 addresses that no other world of this machine has. Given back when it is dropped, and when
/// the process ends, however that happens.
#[derive(Debug)]
pub struct Subnet {
    number: u8,
    /// Of a name that only one can have, and for as long as it is open.
    _claim: UnixListener,
}

impl Subnet {
    /// Takes the first that is free.
    pub fn take() -> Result<Self, MachineError> {
        let claim = |number: u8| {
            let name = format!("longshore-world/{number}");
            let address = SocketAddr::from_abstract_name(name)?;
            UnixListener::bind_addr(&address).map(|_claim| Self { number, _claim })
        };
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for number in 0..=u8::MAX {
            match claim(number) {
                Ok(subnet) => return Ok(subnet),
                Err(error) => last = error,
            }
        }
        Err(failed("find a free network for", "the world")(last))
    }

    /// Which one it is, from 0.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The address of one machine.
    ///
    /// # Panics
    /// When there are more than 254.
    pub fn address(&self, machine: usize) -> Ipv4Addr {
        let host = u8::try_from(machine + 1).ok().filter(|host| *host < u8::MAX);
        let host = host.expect("a world has at most 254 machines");
        Ipv4Addr::new(NETWORK[0], NETWORK[1], self.number, host)
    }

    /// The machine that has an address.
    pub fn machine_at(&self, address: Ipv4Addr) -> Option<usize> {
        let [a, b, number, host] = address.octets();
        let is_here = [a, b] == NETWORK && number == self.number;
        usize::from(host).checked_sub(1).filter(|_| is_here)
    }
}

/// A machine. It is gone when this is dropped and what ran on it has ended.
#[derive(Debug)]
pub struct Machine {
    /// The namespace, except for the machine that this runs on.
    network: OwnedFd,
    link: OwnedFd,
}

impl Machine {
    /// Makes one.
    pub fn start(name: &str, address: Ipv4Addr) -> Result<Self, MachineError> {
        on_own_thread(name, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make a network for", name))?;
            connect(name, LINK, address)
        })
    }

    /// Its end of the wire.
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Its network, to be entered by a child that is to run on it.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// Does something on it, on a thread that ends there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, MachineError> {
        on_own_thread("a machine", || {
            setns(&self.network, CloneFlags::CLONE_NEWNET).map_err(failed("enter", "a machine"))?;
            Ok(work())
        })
    }
}

/// Puts the machine that this runs on onto the wire, by a link of this name.
pub fn here(link: &str, address: Ipv4Addr) -> Result<Machine, MachineError> {
    on_own_thread("this machine", || connect("this machine", link, address))
}

/// A thread that entered another network must never come back to where something else could run on it.
fn on_own_thread<T: Send>(
    name: &str,
    work: impl FnOnce() -> Result<T, MachineError> + Send,
) -> Result<T, MachineError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("machine".to_owned());
        let thread = thread.spawn_scoped(scope, work).map_err(failed("make a thread for", name))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the link in the network of the calling thread.
fn connect(name: &str, link: &str, address: Ipv4Addr) -> Result<Machine, MachineError> {
    let network =
        File::open("/proc/thread-self/ns/net").map_err(failed("open the network of", name))?;
    let end = tun::open(link).map_err(failed("make a link for", name))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("make a link for", name))?;
    let configured = runtime.block_on(configure(link, address));
    configured.map_err(failed("give a link and an address to", name))?;
    Ok(Machine { network: network.into(), link: end })
}

async fn configure(link: &str, address: Ipv4Addr) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let work = async {
        for name in ["lo", link] {
            let found = handle.link().get().match_name(name.to_owned()).execute();
            let found = std::pin::pin!(found).try_next().await?;
            let index =
                found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)?;
            if name == link {
                handle.address().add(index, address.into(), 24).execute().await?;
            }
            handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
        }
        Ok::<_, rtnetlink::Error>(())
    };
    // The connection is driven beside what asks through it, and ends with that.
    tokio::select! {
        outcome = work => outcome.map_err(io::Error::other),
        () = connection => Err(io::Error::other("the kernel ended the connection")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_world_has_addresses_of_its_own() {
        // Where no other test takes any.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (one, other) = (Subnet::take().unwrap(), Subnet::take().unwrap());
        assert_ne!(one.address(0), other.address(0));
        assert_eq!(one.machine_at(one.address(0)), Some(0));
        assert_eq!(one.machine_at(one.address(253)), Some(253));
        assert_eq!(one.machine_at(other.address(0)), None);
        assert_eq!(one.machine_at(Ipv4Addr::new(198, 18, one.number(), 0)), None);
        let number = one.number();
        drop(one);
        assert_eq!(Subnet::take().unwrap().number(), number, "it can be had again");
    }
}
