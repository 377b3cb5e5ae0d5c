//! The directories of one platform: what is kept in its data directory, and who may use it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore_network::AgentId;
use longshore_node::STOP_INSTANCES_FILE;

use crate::context_file::{ADMIN_TOKEN_FILE, ENDPOINTS_FILE, METRICS_TARGETS_FILE};
use crate::failure::{Failure, Kind, OrFail};
use crate::state_file;

/// How long the roles of a supervisor that was killed may take to end.
const OLD_ROLES: Duration = Duration::from_secs(40);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The longest path of a Unix socket, less room for the names of shims below the run directory.
const LONGEST_RUN_DIR: usize = 60;

/// What a data directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Every role.
    Platform,
    /// A node that joined.
    Node,
    /// A location that joined.
    Location,
    /// A registry that joined.
    Registry,
}

impl Contents {
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Platform => &["global", "location", "node", "registry", "ingress", "secrets"],
            Self::Node => &["node", "secrets"],
            Self::Location => &["location", "node", "ingress", "secrets"],
            Self::Registry => &["registry", "secrets"],
        }
    }

    /// The part that holds after what all is named on the machine.
    fn marked(self) -> &'static str {
        match self {
            Self::Platform | Self::Node | Self::Location => "node",
            Self::Registry => "registry",
        }
    }

    /// What else a data directory is of that cannot be this.
    pub fn excluded(self, data_dir: &Path) -> Option<&'static str> {
        let others = [
            ("global", "a whole platform", Self::Platform),
            ("location", "a location", Self::Location),
            ("node", "a node", Self::Node),
            ("registry", "a registry", Self::Registry),
        ];
        let is = others.into_iter().find(|(part, ..)| data_dir.join(part).exists());
        is.filter(|(_, _, contents)| *contents != self).map(|(_, what, _)| what)
    }
}

/// A data directory that this process alone may use, with its run directory.
#[derive(Debug)]
pub struct Home {
    data_dir: PathBuf,
    run_dir: PathBuf,
    agent: AgentId,
    /// Held by this process alone.
    _lock: File,
    /// Shared with every role; see [`crate::inheritance`].
    hold: File,
}

impl Home {
    /// Takes the directories, and makes what is missing there. Waits for the roles of a supervisor
    /// that was killed; refuses beside one that is alive.
    pub fn take(data_dir: &Path, run_root: &Path, contents: Contents) -> Result<Self, Failure> {
        let doing = |path: &Path| format!("cannot use {}", path.display());
        // Other processes are told of these, not all of which begin where this one did.
        let absolute = |path| std::path::absolute(path).or_fail(Kind::Other, doing(path));
        let (data_dir, run_root) = (&*absolute(data_dir)?, absolute(run_root)?);
        private_dir(data_dir).or_fail(Kind::Other, doing(data_dir))?;
        let lock = lock_or_refuse(data_dir)?;
        let hold = wait_for_old_roles(&data_dir.join("roles.lock"))?;
        for part in contents.parts() {
            let dir = data_dir.join(part);
            private_dir(&dir).or_fail(Kind::Other, doing(&dir))?;
        }
        let agent =
            agent_id(&data_dir.join(contents.marked())).or_fail(Kind::Other, doing(data_dir))?;
        let run_dir = run_root.join(agent.to_string());
        if run_dir.as_os_str().len() > LONGEST_RUN_DIR {
            let message = format!("the path {} is too long for sockets", run_dir.display());
            return Err(Failure::new(Kind::Invalid, message).hint("name a shorter one: --run-dir"));
        }
        let home = Self { data_dir: data_dir.to_owned(), run_dir, agent, _lock: lock, hold };
        home.prepare(contents).or_fail(Kind::Other, doing(data_dir))?;
        Ok(home)
    }

    /// Makes the tokens, and removes what an earlier life of the platform left that holds no more.
    fn prepare(&self, contents: Contents) -> io::Result<()> {
        if contents == Contents::Platform {
            for file in [self.admin_token_file(), self.system_token_file()] {
                state_file::ensure(&file, state_file::new_token)?;
            }
        }
        self.unpublish()
    }

    /// Makes the run directory, once it is certain that the platform can run. The users of instances
    /// may pass it on the way to their file systems; whatever else lies there is root's alone.
    pub fn prepare_run_dir(&self) -> io::Result<()> {
        make_way(&self.run_dir)?;
        private_dir(&self.run_dir)?;
        private_dir(&self.links_dir())?;
        fs::set_permissions(&self.run_dir, fs::Permissions::from_mode(0o711))?;
        remove_if_there(&self.stop_instances_file())
    }

    /// Everything that is kept.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The directory of one role.
    pub fn role_dir(&self, role: &str) -> PathBuf {
        self.data_dir.join(role)
    }

    /// What a reboot empties.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The sockets on which the roles meet.
    pub fn links_dir(&self) -> PathBuf {
        self.run_dir.join("links")
    }

    /// What everything that this platform makes on the machine is named after.
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// The token of the administrator.
    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir.join(ADMIN_TOKEN_FILE)
    }

    /// The token with which the platform's own parts pull images.
    pub fn system_token_file(&self) -> PathBuf {
        self.data_dir.join("secrets/system-token")
    }

    /// The keys that seal the secrets of users. Without this file what is sealed is lost.
    pub fn secret_keys_file(&self) -> PathBuf {
        self.data_dir.join("secrets/keys.json")
    }

    /// The root of all certificates. Whoever has this file can be anyone.
    pub fn root_file(&self) -> PathBuf {
        self.data_dir.join("secrets/root.json")
    }

    /// The authority of the certificates that are made here for users.
    pub fn tls_authority_file(&self) -> PathBuf {
        self.data_dir.join("secrets/tls-authority.json")
    }

    /// A certificate of that, and its key.
    pub fn tls_made_files(&self) -> (PathBuf, PathBuf) {
        (self.data_dir.join("secrets/tls.pem"), self.data_dir.join("secrets/tls.key"))
    }

    /// By what users trust those.
    pub fn tls_ca_file(&self) -> PathBuf {
        self.data_dir.join("tls-ca.pem")
    }

    /// The key and certificate of a node or a registry that joined.
    pub fn identity_file(&self) -> PathBuf {
        self.data_dir.join("secrets/identity.json")
    }

    /// The key of the authority of a location that joined, and what was said of it.
    pub fn authority_file(&self) -> PathBuf {
        self.role_dir("location").join("authority.json")
    }

    /// Where this machine joined, and as whom.
    pub fn membership_file(&self) -> PathBuf {
        self.data_dir.join("membership.json")
    }

    /// A file that tells the node, when it is there at its end, to end its instances too.
    pub fn stop_instances_file(&self) -> PathBuf {
        self.run_dir.join(STOP_INSTANCES_FILE)
    }

    /// The locked file that every role inherits.
    pub fn hold(&self) -> BorrowedFd<'_> {
        self.hold.as_fd()
    }

    /// Removes the run directory when no instance lives that has its sockets or mounts there; else
    /// it stays for the next platform, and that is told.
    pub fn clear_run_dir(&self) {
        let in_use = self.is_run_dir_in_use();
        let cleared = in_use.and_then(|in_use| match in_use {
            true => Err(io::Error::other("instances are left")),
            false => fs::remove_dir_all(&self.run_dir),
        });
        if let Err(error) = cleared {
            tracing::warn!(path = %self.run_dir.display(), %error, "the run directory stays");
        }
    }

    fn is_run_dir_in_use(&self) -> io::Result<bool> {
        // Each container's shim has a directory below this one for as long as it lives.
        match fs::read_dir(self.run_dir.join("shims")).map(|mut entries| entries.next().is_some()) {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        is_mount_below(&self.run_dir)
    }

    /// Forgets where the platform is reached, at its end.
    pub fn unpublish(&self) -> io::Result<()> {
        remove_if_there(&self.data_dir.join(METRICS_TARGETS_FILE))?;
        remove_if_there(&self.data_dir.join(ENDPOINTS_FILE))
    }
}

/// Takes the lock of the data directory. It is given up by the kernel when this process ends.
fn lock_or_refuse(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join("up.lock");
    let doing = format!("cannot lock {}", path.display());
    let mut lock = open_lock(&path).or_fail(Kind::Other, &doing)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(already_up(data_dir, &mut lock)),
        Err(TryLockError::Error(error)) => return Err(error).or_fail(Kind::Other, &doing),
    }
    // The number is only for people; the lock is what counts.
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .or_fail(Kind::Other, &doing)?;
    Ok(lock)
}

fn already_up(data_dir: &Path, lock: &mut File) -> Failure {
    let mut pid = String::new();
    // A number that cannot be read is left out; that the other one runs is certain.
    let _ = lock.read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    let dir = data_dir.display();
    Failure::new(Kind::Other, format!("longshore is up already on {dir}: {who} holds it"))
        .hint("end that one first, or name another directory with --data-dir and other ports")
}

fn wait_for_old_roles(path: &Path) -> Result<File, Failure> {
    let doing = format!("cannot lock {}", path.display());
    let hold = open_lock(path).or_fail(Kind::Other, &doing)?;
    let deadline = Instant::now() + OLD_ROLES;
    let mut told = false;
    loop {
        match hold.try_lock() {
            Ok(()) => return Ok(hold),
            Err(TryLockError::Error(error)) => return Err(error).or_fail(Kind::Other, &doing),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                if !told {
                    tracing::info!("waiting for the roles of an earlier supervisor to end");
                    told = true;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(TryLockError::WouldBlock) => {
                let message = "roles of an earlier supervisor do not end";
                return Err(Failure::new(Kind::TimedOut, message)
                    .hint(format!("`fuser -v {}` names them", path.display())));
            }
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The id of the platform's agent on this machine, made once.
fn agent_id(dir: &Path) -> io::Result<AgentId> {
    let make = || Ok(state_file::hex(&state_file::random::<3>()?));
    let text = state_file::ensure(&dir.join("agent-id"), make)?;
    text.parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("agent-id: {error}")))
}

/// Makes the directories above `path` that are missing so that all may pass, whatever the mask of
/// whoever started this.
fn make_way(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A directory of root's alone, with those above it.
fn private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Whether anything is mounted in a directory: removing that must never reach into a mount.
pub fn is_mount_below(dir: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    Ok(points.into_iter().any(|point| point != dir && point.starts_with(dir)))
}

/// A path as the kernel writes it, where `\040` is a blank.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escape, character);
    }
    path.into()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_platform_on_the_same_directory_is_refused_by_pid() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let run = dir.path().join("run");
        let home = Home::take(&data, &run, Contents::Platform).unwrap();
        let failure = Home::take(&data, &run, Contents::Platform).unwrap_err();
        let pid = format!("process {}", std::process::id());
        assert!(failure.message.contains(&pid), "{failure}");
        let agent = home.agent().to_string();
        drop(home);
        assert_eq!(Home::take(&data, &run, Contents::Platform).unwrap().agent().to_string(), agent);
    }

    #[test]
    fn directories_are_the_same_for_who_begins_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::env::set_current_dir(dir.path()).unwrap();
        let home = Home::take(Path::new("data"), Path::new("run"), Contents::Platform).unwrap();
        home.prepare_run_dir().unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(home.data_dir(), here.join("data"));
        assert_eq!(home.run_dir().parent().unwrap(), here.join("run"));
        // Others may run in this process.
        std::env::set_current_dir("/").unwrap();
    }

    #[test]
    fn what_is_secret_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let home =
            Home::take(&dir.path().join("data"), &dir.path().join("run"), Contents::Platform)
                .unwrap();
        assert!(!home.run_dir().exists(), "nothing is left when the platform cannot run");
        home.prepare_run_dir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(home.data_dir()), 0o700);
        assert_eq!((mode(home.run_dir()), mode(&home.links_dir())), (0o711, 0o700));
        assert_eq!(mode(&home.admin_token_file()), 0o600);
        assert_eq!(mode(&home.system_token_file()), 0o600);
    }

    #[test]
    fn the_users_of_instances_pass_whatever_the_mask() {
        let dir = tempfile::tempdir().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let home =
            Home::take(&dir.path().join("data"), &dir.path().join("run/below"), Contents::Platform)
                .unwrap();
        home.prepare_run_dir().unwrap();
        for path in home.run_dir().ancestors().take(3) {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{}", path.display());
        }
    }

    #[test]
    fn the_run_directory_goes_only_without_instances() {
        let dir = tempfile::tempdir().unwrap();
        let home =
            Home::take(&dir.path().join("data"), &dir.path().join("run"), Contents::Platform)
                .unwrap();
        let shim = home.run_dir().join("shims/web-00000001");
        fs::create_dir_all(&shim).unwrap();
        home.clear_run_dir();
        assert!(shim.exists());
        fs::remove_dir(&shim).unwrap();
        home.clear_run_dir();
        assert!(!home.run_dir().exists());
        assert!(is_mount_below(Path::new("/")).unwrap());
        assert_eq!(unescaped(r"/with\040blank"), Path::new("/with blank"));
    }

    #[test]
    fn a_run_directory_too_deep_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(80));
        let failure = Home::take(&dir.path().join("data"), &deep, Contents::Platform).unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
    }
}
