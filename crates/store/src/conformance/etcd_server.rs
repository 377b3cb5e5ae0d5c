//! A real etcd for tests: the `etcd` of the machine, on ports of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::etcd::EtcdAddress;

const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take to tell who leads.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One member of a cluster, or all of it. Dropping this kills it; its directory stays.
#[derive(Debug)]
pub struct EtcdServer {
    name: String,
    dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    /// `NAME=URL` of every member.
    cluster: String,
    tls: Option<ServerTls>,
    /// Whether it waits for the disk.
    syncs: bool,
    child: Option<Child>,
}

/// The files of a cluster that speaks to its clients by TLS, and asks them for a certificate.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The certificates of those who vouch for clients.
    pub ca: PathBuf,
    /// The certificate of the members, for 127.0.0.1.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A port that nobody has now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl EtcdServer {
    /// A cluster of so many members with their data below `dir`, which runs.
    ///
    /// # Errors
    ///
    /// When there is no program `etcd`, or it does not come up.
    pub fn cluster(dir: &Path, n_members: usize) -> io::Result<Vec<Self>> {
        Self::cluster_with(dir, n_members, None)
    }

    /// The same, spoken to by TLS where its files are given.
    ///
    /// # Errors
    ///
    /// As [`Self::cluster`].
    pub fn cluster_with(
        dir: &Path,
        n_members: usize,
        tls: Option<&ServerTls>,
    ) -> io::Result<Vec<Self>> {
        // A port that was free may be taken by the time that etcd wants it.
        for number in 0..2 {
            let dir = dir.join(format!("try{number}"));
            if let Ok(members) = Self::try_cluster(&dir, n_members, tls) {
                return Ok(members);
            }
        }
        Self::try_cluster(&dir.join("last"), n_members, tls)
    }

    fn try_cluster(dir: &Path, n_members: usize, tls: Option<&ServerTls>) -> io::Result<Vec<Self>> {
        let mut members = Self::plan(dir, n_members, tls)?;
        Self::launch(&mut members)?;
        Ok(members)
    }

    /// A cluster that does not run yet, and where it will be: for who has to know that before.
    ///
    /// # Errors
    ///
    /// When its directory cannot be made.
    pub fn plan(dir: &Path, n_members: usize, tls: Option<&ServerTls>) -> io::Result<Vec<Self>> {
        std::fs::create_dir_all(dir)?;
        let mut members = Vec::new();
        for number in 0..n_members {
            let name = format!("m{number}");
            members.push(Self {
                dir: dir.join(&name),
                name,
                client_port: free_port()?,
                peer_port: free_port()?,
                cluster: String::new(),
                tls: tls.cloned(),
                syncs: false,
                child: None,
            });
        }
        let urls: Vec<String> = members
            .iter()
            .map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_port))
            .collect();
        for member in &mut members {
            member.cluster = urls.join(",");
        }
        Ok(members)
    }

    /// Starts all of them, and waits until they take connections.
    ///
    /// # Errors
    ///
    /// When there is no program `etcd`, or it does not come up.
    pub fn launch(members: &mut [Self]) -> io::Result<()> {
        members.iter_mut().try_for_each(Self::start)?;
        members.iter_mut().try_for_each(Self::wait_until_it_listens)
    }

    /// Where these members are.
    pub fn address(members: &[Self]) -> EtcdAddress {
        let urls = members.iter().map(Self::client_url);
        EtcdAddress { members: urls.collect(), prefix: String::new() }
    }

    fn client_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Begins to run it, with the data that it has.
    ///
    /// # Errors
    ///
    /// When there is no program `etcd`.
    pub fn start(&mut self) -> io::Result<()> {
        let (client, peer) = (self.client_url(), format!("http://127.0.0.1:{}", self.peer_port));
        let mut etcd = Command::new("etcd");
        etcd.arg("--name").arg(&self.name).arg("--data-dir").arg(&self.dir);
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &self.cluster, "--log-level", "error"]);
        if let Some(ServerTls { ca, cert, key }) = &self.tls {
            etcd.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            etcd.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
        }
        if !self.syncs {
            // What is tested is not the disk.
            etcd.arg("--unsafe-no-fsync");
        }
        etcd.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        etcd.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let spawned = etcd.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::other("there is no etcd: install the apt package etcd-server")
            }
            _ => error,
        });
        self.child = Some(spawned?);
        Ok(())
    }

    /// From its next start on it waits for the disk, for those who measure that.
    pub fn sync(&mut self) {
        self.syncs = true;
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    ///
    /// When it ends, or takes too long.
    pub fn wait_until_it_listens(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.client_port)).is_err() {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                return Err(io::Error::other(format!("etcd ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "etcd does not listen"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it leads the others, by its own word.
    ///
    /// # Errors
    ///
    /// When it does not answer, or knows of no leader.
    pub fn leads(&self) -> io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.client_port))?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.write_all(b"POST /v3/maintenance/status HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // Each number is in quotes, and the one of the leader comes with no name but its own.
        let number = |field: &str| {
            let (_, rest) = answer.split_once(&format!("\"{field}\":\""))?;
            Some(rest.split_once('"')?.0)
        };
        match (number("member_id"), number("leader")) {
            (Some(own), Some(leader)) => Ok(own == leader),
            _ => Err(io::Error::other(format!("etcd knows of no leader: {answer}"))),
        }
    }

    /// Kills it, as a machine that loses its power would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}
