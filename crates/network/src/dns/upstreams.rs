use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The resolvers that questions are forwarded to.
pub(crate) struct Upstreams {
    addresses: Mutex<Vec<SocketAddr>>,
    /// Where the one that answered last is, so that a dead one delays only one question.
    preferred: AtomicUsize,
    follows_host: bool,
}

impl Upstreams {
    pub(crate) const FILE: &str = "/etc/resolv.conf";

    /// These resolvers, or else those of the host. An error names the file.
    pub(crate) fn open(fixed: Option<Vec<SocketAddr>>) -> Result<Self, (PathBuf, io::Error)> {
        let follows_host = fixed.is_none();
        let addresses = match fixed {
            Some(addresses) => addresses,
            None => of_host().map_err(|error| (PathBuf::from(Self::FILE), error))?,
        };
        Ok(Self { addresses: Mutex::new(addresses), preferred: AtomicUsize::new(0), follows_host })
    }

    /// Reads the host's resolvers again, unless others were configured.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        if self.follows_host {
            let addresses = of_host()?;
            *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        }
        Ok(())
    }

    /// All resolvers, in the order configured.
    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All resolvers with their places, the one that answered last first.
    pub(super) fn in_turn(&self) -> Vec<(usize, SocketAddr)> {
        let mut all: Vec<_> = self.all().into_iter().enumerate().collect();
        if !all.is_empty() {
            let preferred = self.preferred.load(Ordering::Relaxed) % all.len();
            all.rotate_left(preferred);
        }
        all
    }

    /// Remembers which one answered.
    pub(super) fn answered(&self, place: usize) {
        self.preferred.store(place, Ordering::Relaxed);
    }
}

/// The host's resolvers. A host without the file resolves nothing, and neither do its instances.
fn of_host() -> io::Result<Vec<SocketAddr>> {
    match fs::read_to_string(Upstreams::FILE) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A link-local address with its link after a '%' is passed over.
        words.next()?.parse::<IpAddr>().ok()
    });
    addresses.map(|address| SocketAddr::from((address, 53))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_c_library_reads_it() {
        let text = "# made by hand\nsearch example.com\nnameserver 192.0.2.1\n\
                    nameserver\t2001:db8::1 # second\n;nameserver 192.0.2.9\nnameserver fe80::1%eth0\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53"].map(|address| address.parse().unwrap()).into();
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn the_resolver_that_answered_is_asked_first() {
        let all: Vec<SocketAddr> =
            ["192.0.2.1:53", "192.0.2.2:53"].map(|address| address.parse().unwrap()).into();
        let upstreams = Upstreams::open(Some(all.clone())).unwrap();
        assert_eq!(upstreams.in_turn(), [(0, all[0]), (1, all[1])]);
        upstreams.answered(1);
        assert_eq!(upstreams.in_turn(), [(1, all[1]), (0, all[0])]);
    }
}
