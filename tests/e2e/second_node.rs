//! A node beside that of the platform.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use longshore_e2e::leaks::{self, Marks};
use longshore_e2e::process::signal;
use longshore_e2e::{Platform, eventually};
use rustix::process::Signal;

/// A second agent on the same machine, at the same location, with directories of its own.
pub struct SecondNode {
    agent: String,
    dir: PathBuf,
    child: Child,
}

impl SecondNode {
    /// Starts it, with further flags.
    pub fn start(platform: &Platform, flags: &[&str]) -> Self {
        let dir = platform.dir().join("n2");
        let agent = format!("{:06x}", std::process::id() & 0xff_ffff);
        fs::create_dir_all(dir.join("run")).unwrap();
        // Where the location listens, by its own command line.
        let arguments = platform.role("location").unwrap().arguments;
        let listen = arguments.iter().position(|one| one == "--listen").unwrap();
        let registry = format!("http://{}", platform.endpoints().registry);
        let token = platform.data_dir().join("secrets/system-token");
        let mut command = platform.command(&["node", "agent", "--name", "n2", "--agent", &agent]);
        command.arg("--data-dir").arg(dir.join("data")).arg("--run-dir").arg(dir.join("run"));
        command.arg("--gate-listen").arg(format!("unix:{}", dir.join("gate.sock").display()));
        command.arg("--location").arg(&arguments[listen + 1]);
        command.args(["--registry", &registry, "--instance-pool", "100.64.0.0/10"]);
        command.arg("--registry-token-file").arg(token);
        command.args(flags);
        let log = OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { agent, dir, child: command.spawn().unwrap() }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Ends it with what it has.
    fn end(&mut self) {
        let _ = fs::write(self.dir.join("run/stop-instances"), "");
        let _ = signal(self.child.id().cast_signed(), Signal::TERM);
        if eventually("the second agent ends", || Ok(self.child.try_wait()?)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Ends it and checks that nothing is left of it.
    pub fn finish(mut self) {
        self.end();
        let marks = Marks { dir: self.dir.display().to_string(), agent: Some(self.agent.clone()) };
        eventually("nothing is left of the second agent", || {
            let leaks = leaks::find(&marks);
            anyhow::ensure!(leaks.is_empty(), "left behind:\n{}\n{}", leaks.join("\n"), self.log());
            Ok(Some(()))
        })
        .unwrap();
    }
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the second agent wrote:\n{}", self.log());
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.end();
        }
    }
}
