//! containerd with its own state, and the ways that the newest one has to fetch and to keep layers.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use longshore_e2e::eventually;

use super::{Session, in_root};

/// Where it finds the program that decompresses gzip: the first of igzip and unpigz that is there.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Parts of a layer that are fetched at a time are so large, in bytes.
const PART: u32 = 8 << 20;

/// How a containerd fetches and keeps layers. Only 2.1 and newer know more than the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Each in one stream, into a directory: what it does by itself.
    Overlayfs,
    /// Likewise, and several parts of a layer at a time.
    Parts,
    /// Each in one stream, into a file that mkfs.erofs makes of the archive while it comes.
    Erofs,
}

impl Way {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Parts => "overlayfs, parts",
            Self::Erofs => "erofs",
        }
    }

    /// What keeps the layers, as `ctr` is told.
    pub fn snapshotter(self) -> &'static str {
        match self {
            Self::Overlayfs | Self::Parts => "overlayfs",
            Self::Erofs => "erofs",
        }
    }

    /// What its configuration has beside the places of its files.
    fn config(self) -> String {
        let transfer = "plugins.\"io.containerd.transfer.v1.local\"";
        match self {
            Self::Overlayfs => String::new(),
            Self::Parts => format!("[{transfer}]\nconcurrent_layer_fetch_buffer = {PART}\n"),
            Self::Erofs => format!(
                "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"erofs\", \"walking\"]\n\
                 [[{transfer}.unpack_config]]\nplatform = \"linux\"\nsnapshotter = \"erofs\"\n\
                 differ = \"erofs\"\n"
            ),
        }
    }

    /// That layers are kept in this way, in the directory where a containerd has its files.
    pub fn check(self, root: &Path) -> Result<()> {
        if self != Self::Erofs {
            return Ok(());
        }
        let layers = fs::read_dir(root.join("io.containerd.snapshotter.v1.erofs/snapshots"))?;
        let mut layers = layers.filter_map(|layer| Some(layer.ok()?.path().join("layer.erofs")));
        ensure!(layers.any(|layer| layer.exists()), "it kept no layer as a file of EROFS");
        Ok(())
    }
}

/// One that runs.
pub struct Containerd {
    /// Its process.
    pub child: Child,
}

impl Containerd {
    /// Starts one with its files on the disk of a session.
    pub fn start(session: &Session, way: Way) -> Result<Self> {
        let own = |name: &str| session.disk.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n{}",
            own("root"),
            own("state"),
            own("containerd.sock"),
            way.config()
        );
        let file = own("containerd.toml");
        fs::write(&file, config)?;
        let log = File::create(own("containerd.log"))?;
        let (root, group) = (session.puller.root(), Some(&session.group));
        let mut command = in_root(root, "/usr/bin/containerd", group);
        command.args(["--config", &file]).stdin(Stdio::null());
        command.env("PATH", PATH);
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot run containerd")?;
        let mut containerd = Self { child };
        let said = || fs::read_to_string(own("containerd.log"));
        eventually("containerd answers", || {
            if let Some(status) = containerd.child.try_wait()? {
                bail!("containerd ended: {status}: {}", said()?);
            }
            let output = session.ctr().arg("version").output()?;
            Ok(output.status.success().then_some(()))
        })?;
        // It goes on without what it does not know, and would be measured with other settings than are printed.
        ensure!(
            !said()?.contains("unknown key"),
            "containerd does not know a setting: {}",
            said()?
        );
        Ok(containerd)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It is gone with the namespaces of the bench at the latest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
