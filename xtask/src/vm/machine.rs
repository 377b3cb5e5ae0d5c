//! The virtual machine as a process: started, listened to, and ended.

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::carried::{Carried, TIME_LIMIT};
use super::disk::Disk;
use super::report::Report;
use crate::command::{program, target_dir};

/// A machine that is off.
pub struct Machine<'a> {
    pub disk: &'a Disk,
    pub carried: &'a Carried,
}

/// A test that hangs is ended sooner, and says so.
const MAX_SILENCE: Duration = Duration::from_secs(TIME_LIMIT as u64 + 60);

/// How much of the console is shown when the machine does not end as it should.
const N_LINES_SHOWN: usize = 40;

impl Machine<'_> {
    /// Boots it, lets it run the tests and waits for its end.
    pub fn run(&self, limit: Duration, report: &mut Report<'_>) -> Result<()> {
        let console = self.console();
        let mut qemu = self.qemu("")?;
        qemu.args(["-chardev", "stdio,id=results", "-serial", "chardev:results"]);
        let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().expect("its output is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // A serial line may lose bits of a character; what is left says enough.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + limit;
        let hangs = loop {
            let wait = deadline.saturating_duration_since(Instant::now()).min(MAX_SILENCE);
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    let shown = report.read(&line);
                    if !shown.is_empty() {
                        eprintln!("{shown}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => break true,
            }
        };
        if hangs {
            // It may have ended by itself in this moment.
            let _ = child.kill();
        }
        let status = child.wait().context("cannot wait for qemu")?;
        let trouble = match (report.booted(), report.done) {
            (true, true) if !hangs => return Ok(()),
            (true, true) => "it did not power off".to_owned(),
            _ if hangs => format!("it hangs, or has not come to its end in {} s", limit.as_secs()),
            (false, _) => format!("it did not boot (qemu: {status})"),
            (true, false) => format!("it went down before the tests were done (qemu: {status})"),
        };
        let tail = tail(&console).unwrap_or_else(|error| format!("(no console: {error})"));
        bail!("the virtual machine failed: {trouble}; its console ended with\n{tail}");
    }

    /// Boots it with a shell on this terminal.
    pub fn shell(&self) -> Result<()> {
        let mut qemu = self.qemu("longshore.shell")?;
        qemu.args(["-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results"]);
        let status = qemu.status().context("cannot run qemu")?;
        anyhow::ensure!(status.success(), "qemu: {status}; see {}", self.console().display());
        Ok(())
    }

    fn console(&self) -> PathBuf {
        target_dir().join("vm/console.log")
    }

    fn qemu(&self, kernel_argument: &str) -> Result<Command> {
        let console = self.console();
        // Of an earlier run.
        match fs::remove_file(&console) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", console.display()));
            }
            _ => {}
        }
        // A kernel that panics ends the machine, and what should not happen in it is a panic. Memory that it gives
        // out is not filled with zeros first: what does so is emulated, too.
        let append = format!(
            "console=ttyS0 root=/dev/nvme0n1 ro quiet loglevel=4 panic=-1 oops=panic \
             mitigations=off init_on_alloc=0 {kernel_argument}"
        );
        let drive = |id: &str, file: &PathBuf| {
            // Written to in a file of the temporary directory that has no name.
            format!("if=none,id={id},file={},format=raw,snapshot=on,cache=unsafe", file.display())
        };
        // It ends with us, whatever ends us.
        let mut command = program("setpriv", ["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"])
            .args(["-smp", "2", "-m", "3G", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(&self.disk.kernel)
            .args(["-append", &append])
            // Two name spaces of one device, so that their order is certain.
            .args(["-device", "nvme,serial=longshore"])
            .args([
                "-drive",
                &drive("root", &self.disk.root),
                "-device",
                "nvme-ns,drive=root,nsid=1",
            ])
            .args([
                "-drive",
                &drive("tests", &self.carried.disk),
                "-device",
                "nvme-ns,drive=tests,nsid=2",
            ])
            .args(["-chardev", &format!("file,id=console,path={}", console.display())])
            .args(["-serial", "chardev:console"])
            .env("TMPDIR", target_dir().join("vm"));
        Ok(command)
    }
}

/// The last lines of a file.
fn tail(file: &PathBuf) -> Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(file)?.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(N_LINES_SHOWN)..].join("\n"))
}
