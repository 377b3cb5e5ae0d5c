//! Which devices a container may open: the nine harmless ones, and none may be made.
//!
//! Beside the missing CAP_MKNOD this is the second wall before the host's disks: it holds also for
//! device nodes that an image or a mount brings along. On v1 the devices cgroup decides. On v2 it is
//! a BPF program attached to the cgroup, which libcontainer loads only with its `cgroupsv2_devices`
//! feature and the C library that needs; the program is thirty instructions, so we assemble it here.
//! It is attached after the runtime has made the nodes in `/dev` and before the container's program
//! runs. A start at which this fails is refused.

use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crate::cgroup::CgroupKind;

/// The character devices that may be read and written: major, and minor unless all are meant.
pub(crate) const ALLOWED: [(u32, Option<u32>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// Why access to devices could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceProblem {
    /// A rule was not accepted.
    #[error("writing the device rule {rule:?} to {}", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// The rule.
        rule: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The rules in force are not the ones written.
    #[error("the devices cgroup {} still allows {found:?}", path.display())]
    NotInForce {
        /// The cgroup.
        path: PathBuf,
        /// What it allows.
        found: String,
    },
    /// The program could not be loaded.
    #[error("loading the BPF device program (the kernel needs CONFIG_CGROUP_BPF)")]
    Load(#[source] io::Error),
    /// The program could not be attached.
    #[error("attaching the BPF device program to {}", path.display())]
    Attach {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Closes all devices but the allowed ones to the processes of a cgroup.
pub(crate) fn restrict(kind: CgroupKind, dir: &Path) -> Result<(), DeviceProblem> {
    match kind {
        CgroupKind::V1 => restrict_v1(dir),
        CgroupKind::V2 => restrict_v2(dir),
    }
}

fn restrict_v1(dir: &Path) -> Result<(), DeviceProblem> {
    let write = |file: &str, rule: &str| {
        let path = dir.join(file);
        fs::write(&path, rule).map_err(|source| DeviceProblem::Rule {
            path,
            rule: rule.to_owned(),
            source,
        })
    };
    write("devices.deny", "a")?;
    for (major, minor) in ALLOWED {
        let minor = minor.map_or("*".to_owned(), |minor| minor.to_string());
        write("devices.allow", &format!("c {major}:{minor} rw"))?;
    }
    let found = fs::read_to_string(dir.join("devices.list")).unwrap_or_default();
    let expected = |line: &str| line.starts_with("c ") && line.ends_with(" rw");
    if found.lines().count() == ALLOWED.len() && found.lines().all(expected) {
        Ok(())
    } else {
        Err(DeviceProblem::NotInForce { path: dir.to_owned(), found })
    }
}

/// One BPF instruction as the kernel's `struct bpf_insn` lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const JUMP_IF_BITS: u8 = 0x45;
const EXIT: u8 = 0x95;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups above keep their say.
const ATTACH_ALLOW_MULTI: u32 = 2;
const DEVICE_TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;

/// The kernel passes `struct bpf_cgroup_dev_ctx { access_type, major, minor }` in register 1, the
/// type in the low and the access in the high half of the first word, and takes 1 for yes.
fn program() -> Vec<Instruction> {
    let op = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    };
    // Each rule compares the major and, unless all minors are meant, the minor, then says yes.
    let rules: Vec<Vec<Instruction>> = ALLOWED
        .iter()
        .map(|(major, minor)| {
            let yes = [op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)];
            let minor = minor.map(|minor| op(JUMP_IF_NOT_EQUAL, 5, 0, 2, minor as i32));
            let past = 2 + i16::from(minor.is_some());
            let major = op(JUMP_IF_NOT_EQUAL, 4, 0, past, *major as i32);
            [major].into_iter().chain(minor).chain(yes).collect()
        })
        .collect();
    let to_no = i16::try_from(rules.iter().map(Vec::len).sum::<usize>())
        .expect("the rules are a few dozen instructions");
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(COPY, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
        op(JUMP_IF_NOT_EQUAL, 2, 0, to_no + 1, DEVICE_TYPE_CHAR),
        op(JUMP_IF_BITS, 3, 0, to_no, ACCESS_MKNOD),
    ];
    program.extend(rules.into_iter().flatten());
    program.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// The part of the kernel's `union bpf_attr` that loading needs.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attributes`, a plain C structure whose
    // pointers, if any, the callers keep alive across the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes as *const T, mem::size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn load() -> io::Result<OwnedFd> {
    let program = program();
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        kind: PROG_TYPE_CGROUP_DEVICE,
        n_instructions: u32::try_from(program.len()).expect("the program is short"),
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
    };
    let fd = bpf(PROG_LOAD, &attributes)?;
    let fd = i32::try_from(fd).expect("the kernel returns a descriptor");
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn restrict_v2(dir: &Path) -> Result<(), DeviceProblem> {
    let program = load().map_err(DeviceProblem::Load)?;
    let attach = || -> io::Result<()> {
        let cgroup = File::open(dir)?;
        let raw = |fd: i32| u32::try_from(fd).expect("an open descriptor is not negative");
        let attributes = AttachAttributes {
            target: raw(cgroup.as_raw_fd()),
            program: raw(program.as_raw_fd()),
            kind: ATTACH_CGROUP_DEVICE,
            flags: ATTACH_ALLOW_MULTI,
        };
        bpf(PROG_ATTACH, &attributes).map(drop)
    };
    attach().map_err(|source| DeviceProblem::Attach { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Removed(PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Runs a shell inside `cgroup` and returns what it printed.
    fn in_cgroup(cgroup: &Path, script: &str) -> String {
        let script = format!("echo $$ > {}/cgroup.procs && {script}", cgroup.display());
        let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    /// Needs root and a v2 hierarchy somewhere; the hybrid one without controllers will do.
    #[test]
    fn the_v2_program_decides() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .expect("this test needs a mounted cgroup2 file system");
        let dir = Path::new(mount).join(format!("longshore-devices-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let _removed = Removed(dir.clone());
        let node = tempfile::tempdir().unwrap();
        let disk = node.path().join("disk");
        let script = format!(
            "head -c 1 /dev/zero | od -An -tx1; echo hi > /dev/null && echo wrote; \
             mknod {0} b 254 0 && echo made; mknod {0}c c 1 3 && echo made; head -c1 /dev/kmsg",
            disk.display()
        );
        restrict_v2(&dir).unwrap();
        let output = in_cgroup(&dir, &script);
        assert!(output.contains("00") && output.contains("wrote"), "{output}");
        assert!(!output.contains("made"), "{output}");
        assert_eq!(output.matches("Operation not permitted").count(), 3, "{output}");
    }
}
