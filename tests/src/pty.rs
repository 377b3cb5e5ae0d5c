//! A person at a terminal: a program runs in one, keys are typed, and what it shows is read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::wait::eventually;

/// A program in a terminal. Dropping this closes the terminal and ends the program.
pub struct Terminal {
    master: File,
    /// Held, so that the settings of the terminal can be looked at when nobody has it any more.
    terminal: OwnedFd,
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs a program of these arguments in a terminal of this size, whose session it leads.
    pub fn run(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let stream = || -> Result<Stdio> { Ok(terminal.try_clone()?.into()) };
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            leader.envs(value.map(|value| (name, value)));
        }
        if let Some(dir) = command.get_current_dir() {
            leader.current_dir(dir);
        }
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size)?;
        let child = leader.stdin(stream()?).stdout(stream()?).stderr(stream()?).spawn()?;
        let (master, shown) = (File::from(master), Arc::new(Mutex::new(String::new())));
        let (mut reader, seen) = (master.try_clone()?, Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with the terminal.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]);
                seen.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Self { master, terminal, child, shown })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.master.write_all(keys.as_ref())?)
    }

    /// Types a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.press(format!("{text}\r"))
    }

    /// Gives the terminal another size, of which the program is told.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// All that was shown.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a text was shown, and forgets it with all before.
    pub fn until(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} is shown"), || {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let found = shown.find(text);
            ensure!(found.is_some(), "{shown:?} is shown");
            Ok(found.map(|begin| drop(shown.drain(..begin + text.len()))))
        })
    }

    /// Whether keys come as they are pressed, without an echo.
    pub fn is_raw(&self) -> Result<bool> {
        let modes = tcgetattr(&self.terminal)?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for the end of the program: its exit code. The terminal is as it was then.
    pub fn ended(&mut self) -> Result<i32> {
        let status = eventually("the program ends", || {
            let status = self.child.try_wait()?;
            ensure!(status.is_some(), "{:?} is shown", self.shown());
            Ok(status)
        })?;
        ensure!(!self.is_raw()?, "the terminal is left raw");
        status.code().context("it was killed")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
