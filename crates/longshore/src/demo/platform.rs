//! The platform of the demo: a `longshore up` of its own, which ends with the demo however that
//! ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::context_file::{self, ADMIN_TOKEN_FILE, Endpoints};
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::{Bequest, LifeLine};
use crate::output::say;
use crate::supervisor::{ask_to_end, is_mount_below, own_program};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
const READY: Duration = Duration::from_secs(60);
/// Longer than all that `up` gives its roles, one after the other.
const END: Duration = Duration::from_secs(180);
const LOG_LINES: usize = 30;

/// Where the demo lies.
#[derive(Debug)]
pub enum Place {
    /// In a directory that stays.
    Kept(PathBuf),
    /// In one that goes, and with it the directory above when the demo made that.
    Temporary {
        /// The directory.
        dir: TempDir,
        /// The one above.
        made: Option<PathBuf>,
    },
}

impl Place {
    /// A directory that goes, below `parent` or where the system has such.
    pub fn temporary(parent: Option<&Path>) -> Result<Self, Failure> {
        let doing = "cannot make a temporary directory";
        let mut builder = tempfile::Builder::new();
        // Short, for the paths of sockets below it are limited.
        builder.prefix("longshore-");
        // The users of instances pass it on the way to their file systems.
        builder.permissions(fs::Permissions::from_mode(0o711));
        let (dir, made) = match parent {
            Some(parent) => {
                let made = (!parent.exists()).then(|| parent.to_owned());
                fs::create_dir_all(parent).or_fail(Kind::Other, doing)?;
                (builder.tempdir_in(parent), made)
            }
            None => (builder.tempdir(), None),
        };
        Ok(Self::Temporary { dir: dir.or_fail(Kind::Other, doing)?, made })
    }

    /// Removes it, unless it is kept.
    pub fn remove(self) -> Result<(), Failure> {
        match self {
            Self::Kept(dir) => say(format!("Kept in {}", dir.display())),
            Self::Temporary { dir, made } => {
                let doing = "cannot remove the temporary directory";
                if is_mount_below(dir.path()).or_fail(Kind::Other, doing)? {
                    let left = dir.keep();
                    let message = format!("something is still mounted below {}", left.display());
                    return Err(Failure::new(Kind::Other, message));
                }
                dir.close().or_fail(Kind::Other, doing)?;
                if let Some(made) = made {
                    fs::remove_dir(made).or_fail(Kind::Other, doing)?;
                }
            }
        }
        Ok(())
    }

    fn dir(&self) -> &Path {
        match self {
            Self::Kept(dir) => dir,
            Self::Temporary { dir, made: _ } => dir.path(),
        }
    }
}

/// A running `longshore up`.
#[derive(Debug)]
pub struct DemoPlatform {
    place: Place,
    up: Child,
    _life_line: LifeLine,
}

impl DemoPlatform {
    /// Starts it.
    pub fn start(place: Place) -> Result<Self, Failure> {
        let dir = place.dir().to_owned();
        fs::create_dir_all(&dir).or_fail(Kind::Other, format!("cannot make {}", dir.display()))?;
        // What an earlier demo published holds no more.
        let _ = fs::remove_file(dir.join("data").join(context_file::ENDPOINTS_FILE));
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let log = options.open(log_path(&dir)).or_fail(Kind::Other, "cannot write the log")?;
        let life_line = LifeLine::new().or_fail(Kind::Other, "cannot begin")?;
        let exe = own_program().or_fail(Kind::Other, "cannot find our own program")?;
        let mut command = Command::new(exe);
        command
            .args(arguments(&place))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which ends the platform in its order.
            .process_group(0);
        Bequest { life_line: &life_line, hold: None, sockets: Vec::new() }.give(&mut command);
        say(format!("Starting a platform in {}", dir.display()));
        let up = command.spawn().or_fail(Kind::Other, "cannot start the platform")?;
        Ok(Self { place, up, _life_line: life_line })
    }

    /// Waits until it can be used.
    pub async fn ready(&mut self) -> Result<Endpoints, Failure> {
        let data_dir = self.data_dir();
        let deadline = Instant::now() + READY;
        loop {
            let context = context_file::of_data_dir(&data_dir)
                .or_fail(Kind::Other, "cannot read where the platform is reached")?;
            if let Some(context) = context {
                return Ok(context.endpoints);
            }
            if let Some(status) = self.up.try_wait().or_fail(Kind::Other, "cannot wait")? {
                return Err(ended(status));
            }
            if Instant::now() > deadline {
                return Err(Failure::new(Kind::TimedOut, "the platform is not ready in time"));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits for the platform's end, which nobody asked for.
    pub async fn ended_by_itself(&mut self) -> Result<(), Failure> {
        let status = self.up.wait().await.or_fail(Kind::Other, "cannot wait")?;
        Err(ended(status))
    }

    /// Ends the platform with all instances, and removes a place that is not kept.
    pub async fn end(mut self) -> Result<(), Failure> {
        if self.up.id().is_some() {
            ask_to_end(&self.up);
            match tokio::time::timeout(END, self.up.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(outcome) => {
                    say(self.log_tail());
                    return Err(ended(outcome.or_fail(Kind::Other, "cannot wait")?));
                }
                Err(_) => return Err(Failure::new(Kind::TimedOut, "the platform does not end")),
            }
        }
        self.place.remove()
    }

    /// The last that the platform said, for a person whose demo failed.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(log_path(self.place.dir())).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("The platform's last lines:\n  {}", tail.join("\n  "))
    }

    /// The token of the administrator.
    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir().join(ADMIN_TOKEN_FILE)
    }

    fn data_dir(&self) -> PathBuf {
        self.place.dir().join("data")
    }
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("up.log")
}

fn arguments(place: &Place) -> Vec<String> {
    let dir = place.dir();
    let mut arguments = vec!["up".to_owned(), "--stop-instances".to_owned()];
    arguments.extend(["--data-dir".to_owned(), dir.join("data").display().to_string()]);
    let ports = match place {
        Place::Kept(_) => [4600, 4601, 8080].map(free_or_any),
        Place::Temporary { .. } => {
            arguments.extend(["--run-dir".to_owned(), dir.join("run").display().to_string()]);
            arguments.push("--no-context".to_owned());
            [0; 3]
        }
    };
    for (name, port) in ["api", "registry", "ingress"].into_iter().zip(ports) {
        arguments.extend([format!("--{name}-listen"), format!("127.0.0.1:{port}")]);
    }
    arguments
}

/// The port when it is free now, else 0: a demo should not fail for what else runs here.
fn free_or_any(port: u16) -> u16 {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

fn ended(status: ExitStatus) -> Failure {
    Failure::new(Kind::Other, format!("the platform ended: {status}"))
}
