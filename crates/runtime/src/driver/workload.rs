//! The last steps inside the container, between libcontainer's set-up and the program.
//!
//! This runs in the forked child, in the container's namespaces, with the rights of its user. It
//! does not trust that the steps before it worked: no-new-privileges and all five capability sets
//! are read back, and only then is the filter installed and the program run. Whatever fails is
//! written to a pipe that closes by itself when the program runs; then the process ends.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::Spec;
use seccompiler::BpfProgram;

use super::join_users::JoinUsers;
use super::{DriverProblem, applied};
use crate::oci;
use crate::process::end_with_parent;
use crate::seccomp;
use crate::user::ResolvedUser;

#[derive(Clone)]
pub(super) struct Workload {
    report: RawFd,
    withheld: Vec<RawFd>,
    filter: Rc<BpfProgram>,
    effective: u64,
    joining: Option<JoinUsers>,
    in_terminal: bool,
}

impl Workload {
    /// `report` is the pipe for what goes wrong; it must close on exec. `withheld` are descriptors of
    /// the parent that the child closes at once.
    pub fn new(
        user: &ResolvedUser,
        report: RawFd,
        withheld: &[RawFd],
    ) -> Result<Self, DriverProblem> {
        let filter = Rc::new(seccomp::compile().map_err(DriverProblem::Filter)?);
        let effective = oci::effective_bits(user);
        Ok(Self {
            report,
            withheld: withheld.to_vec(),
            filter,
            effective,
            joining: None,
            in_terminal: false,
        })
    }

    /// Makes the terminal that the standard input is that of the session.
    pub fn take_terminal(&mut self) {
        self.in_terminal = true;
    }

    /// Joins a user namespace before anything else.
    pub fn join_first(&mut self, joining: JoinUsers) {
        self.joining = Some(joining);
    }

    /// Runs the program; returns only to say why that failed.
    fn enter(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let process = spec.process().as_ref().ok_or("no process to run")?;
        let args = process.args().as_deref().unwrap_or_default();
        let env = process.env().as_deref().unwrap_or_default();
        let program = args.first().ok_or("no program to run")?;
        let c_strings = |texts: &[String]| -> Result<Vec<CString>, String> {
            let convert = |text: &String| {
                CString::new(text.as_str())
                    .map_err(|_| format!("exec: {text:?} contains a zero byte"))
            };
            texts.iter().map(convert).collect()
        };
        let (argv, envp) = (c_strings(args)?, c_strings(env)?);
        let texts: Vec<&str> = env.iter().map(String::as_str).collect();
        let candidates = candidates(program, &texts);

        if let Some(joining) = &self.joining {
            joining.join().map_err(|error| format!("joining the user namespace: {error}"))?;
        }
        if self.in_terminal {
            take_terminal().map_err(|error| format!("taking the terminal: {error}"))?;
        }
        reset_signals().map_err(|error| format!("resetting signals: {error}"))?;
        end_with_parent().map_err(|error| format!("tying the process to its shim: {error}"))?;
        applied::check_own(&applied::rights(self.effective))?;
        seccompiler::apply_filter(&self.filter)
            .map_err(|error| format!("installing the system call filter: {error}"))?;
        Err(exec_first(program, &candidates, &argv, &envp))
    }
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(problem) = self.enter(spec);
        // SAFETY: the parent keeps the pipe open until this process ends or runs its program.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        // Without a reader there is nobody left to tell.
        let _ = rustix::io::write(report, problem.as_bytes());
        Err(ExecutorError::Other(problem))
    }

    /// Called while the parent still waits: the place to let go of what is the parent's alone.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        for fd in &self.withheld {
            // SAFETY: these are raw copies, made by the fork, of descriptors that the parent owns;
            // nothing in this process uses them.
            unsafe { libc::close(*fd) };
        }
        end_with_parent().map_err(|error| {
            ExecutorValidationError::ArgValidationError(format!(
                "tying the process to its shim: {error}"
            ))
        })
    }

    /// The environment is passed to the program directly, in order and unchanged.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// The process leads its session, of which the terminal becomes that of its group.
fn take_terminal() -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    Ok(())
}

/// The paths to try for a program, as a shell would look it up.
pub(super) fn candidates(program: &str, env: &[&str]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let path = path.unwrap_or(oci::DEFAULT_PATH);
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{program}")).collect()
}

/// The parent ignores SIGPIPE, as every Rust program does; a container's program must not inherit it.
fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours. The two signals that cannot be changed and the two
        // that the C library keeps for itself fail, and have their default anyway.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Runs the first candidate that the kernel accepts, and otherwise tells the most telling refusal.
fn exec_first(program: &str, candidates: &[String], argv: &[CString], envp: &[CString]) -> String {
    let mut refusal = None;
    for candidate in candidates {
        let Ok(path) = CString::new(candidate.as_str()) else { continue };
        let Err(errno) = nix::unistd::execve(&path, argv, envp);
        match errno {
            nix::Error::ENOENT | nix::Error::ENOTDIR if !program.contains('/') => {}
            errno => refusal = refusal.or(Some((candidate, errno))),
        }
    }
    let refusal_of = |(path, errno): (&String, nix::Error)| {
        (path.clone(), errno, fs::symlink_metadata(path).is_ok())
    };
    let told = refusal.map(refusal_of);
    self::refusal(
        program,
        told.as_ref().map(|(path, errno, there)| (path.as_str(), *errno, *there)),
    )
}

/// Why a program was not run: the path that was refused, with what error, and whether it is there;
/// none when no path was found at all.
pub(super) fn refusal(program: &str, refused: Option<(&str, nix::Error, bool)>) -> String {
    match refused {
        None => format!("exec: {program}: not found in PATH"),
        Some((path, nix::Error::ENOENT, true)) => {
            format!("exec: {path}: the file is there, but its interpreter or loader is not")
        }
        Some((path, nix::Error::ENOENT, false)) => format!("exec: {path}: no such file"),
        Some((path, nix::Error::EACCES, _)) => {
            format!("exec: {path}: permission denied (is it a file with its execute bit set?)")
        }
        Some((path, nix::Error::ENOEXEC, _)) => {
            format!("exec: {path}: not a program for this machine, and no #! line")
        }
        Some((path, errno, _)) => format!("exec: {path}: {}", errno.desc()),
    }
}
