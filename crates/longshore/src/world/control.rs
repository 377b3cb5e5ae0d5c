//! The socket by which a world is told what to do while it runs: a JSON document in a line each way.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_link::Service;
use longshore_world::control::{
    Answer, Command, ControlError, LocationStatus, MachineStatus, Names, Status, apply, cut_from,
    paths,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::machines::Machines;
use super::plan::ingress_of;
use crate::failure::{Failure, Kind, OrFail};

/// The longest command; whoever says more is not heard.
const LONGEST_LINE: u64 = 64 << 10;
/// The longest answer that is read.
const LONGEST_ANSWER: u64 = 4 << 20;

/// Where it is.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// A world that can be told what to do.
#[derive(Debug)]
pub struct Control {
    /// Its machines.
    pub machines: Arc<Machines>,
    /// What decides what of its wire is chance.
    pub seed: u64,
}

impl Control {
    /// Serves the socket in the directory of the world, which root alone can use.
    pub fn serve(self: &Arc<Self>, dir: &Path, service: &Service) -> io::Result<()> {
        let path = socket_path(dir);
        // Left by a world that was killed; the lock of the directory says that it is gone.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let (control, requests) = (Arc::clone(self), service.clone());
        service.spawn_until_shutdown("control", async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let control = Arc::clone(&control);
                    requests.spawn_request("a command", async move {
                        // Who broke off is told nothing more.
                        let _ = control.talk(stream).await;
                    });
                }
            }
        });
        Ok(())
    }

    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = String::new();
            if (&mut reader).take(LONGEST_LINE).read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let answer = match serde_json::from_str(&line) {
                Ok(command) => self.answer(&command),
                Err(error) => Answer::Error(format!("that is no command: {error}")),
            };
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            writer.write_all(&text).await?;
        }
    }

    fn answer(&self, command: &Command) -> Answer {
        match self.apply(command) {
            Ok(()) => Answer::Status(self.status()),
            Err(error) => Answer::Error(error.to_string()),
        }
    }

    /// Does to the wire what is asked.
    pub fn apply(&self, command: &Command) -> Result<(), ControlError> {
        let Machines { plan, carrier, .. } = &*self.machines;
        let names = Names { places: &plan.places, machines: &plan.names() };
        apply(&mut carrier.wire(), names, command)
    }

    /// How the world is.
    pub fn status(&self) -> Status {
        let Machines { plan, subnet, carrier, .. } = &*self.machines;
        let location = |place: usize| {
            let place_of = plan.places[place];
            let first = plan.machines.iter().position(|machine| machine.place == place);
            let address = subnet.address(first.unwrap_or_default());
            LocationStatus {
                name: place_of.code.to_owned(),
                city: place_of.city.to_owned(),
                country: place_of.country.to_owned(),
                ingress: format!("http://{}", ingress_of(address)),
            }
        };
        let wire = carrier.wire();
        let names = Names { places: &plan.places, machines: &plan.names() };
        let machine = |idx: usize| MachineStatus {
            name: plan.machines[idx].name.clone(),
            place: plan.place_of(idx).code.to_owned(),
            address: subnet.address(idx).to_string(),
            dir: self.machines.dir_of(idx).display().to_string(),
            pid: self.machines.pid(idx),
            cut_from: cut_from(&wire, names, idx),
        };
        Status {
            seed: self.seed,
            user_at: plan.places[plan.user_at].code.to_owned(),
            locations: (0..plan.n_locations).map(location).collect(),
            paths: paths(&wire, &plan.places),
            machines: (0..plan.machines.len()).map(machine).collect(),
        }
    }
}

/// Tells the world in a directory what to do.
pub async fn tell(dir: &Path, command: &Command) -> Result<Status, Failure> {
    let path = socket_path(dir);
    let doing = format!("no world answers at {}", path.display());
    let hint = "`longshore world` starts one; --data-dir names that of another";
    let stream = UnixStream::connect(&path).await;
    let stream = stream.or_fail(Kind::Unavailable, &doing).map_err(|failure| failure.hint(hint))?;
    let answer = exchange(stream, command).await.or_fail(Kind::Unavailable, doing)?;
    match answer {
        Answer::Status(status) => Ok(status),
        Answer::Error(why) => Err(Failure::new(Kind::Invalid, why)),
    }
}

async fn exchange(stream: UnixStream, command: &Command) -> io::Result<Answer> {
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut answer = String::new();
    BufReader::new(reader).take(LONGEST_ANSWER).read_line(&mut answer).await?;
    Ok(serde_json::from_str(&answer)?)
}
