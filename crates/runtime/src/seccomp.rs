//! The system calls that a container may make: docker's default profile, as a list of our own.
//!
//! libcontainer without its `libseccomp` feature runs containers unfiltered, so the filter is
//! compiled here, before the container is made, and installed just before its program runs. What is
//! not listed fails with EPERM. Two kinds fail with ENOSYS instead, so that C libraries fall back:
//! `clone3`, whose flags lie in memory that a filter cannot read, and calls newer than this list.
//! Calls of another ABI (32-bit x86) end the process.
//!
//! A runtime that installs its filter itself is given the same list as the `seccomp` section of its
//! configuration, by [`section`]. There is one list and one table of conditions for both forms.

mod allowed;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};
use serde_json::{Value, json};

#[cfg(target_arch = "x86_64")]
const ARCH: (TargetArch, u32) = (TargetArch::x86_64, 0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCH: (TargetArch, u32) = (TargetArch::aarch64, 0xc000_00b7);

#[cfg(target_arch = "x86_64")]
const ARCH_NAME: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCH_NAME: &str = "SCMP_ARCH_AARCH64";

/// All `CLONE_NEW*` flags that `clone` takes.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// The domains of `personality` that docker allows: Linux and Linux32, with and without the old
/// `uname`, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
/// Sets, among other things, the project that a file counts for: an owner who could change that
/// could leave the quota of its instance. `FS_IOC_FSSETXATTR`, the same on both architectures.
const SET_PROJECT: u64 = 0x401c_5820;
/// Sockets to the hypervisor are no part of a container's network.
const AF_VSOCK: u64 = 40;

/// What an argument of a call is compared to.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// None of these bits is set.
    Without(u64),
    Not(u64),
    Exactly(u64),
}

/// A call that is allowed with some arguments only: with those of any of its rows.
struct Condition {
    call: allowed::Call,
    argument: u8,
    is: Is,
}

fn conditions() -> Vec<Condition> {
    let mut all = vec![
        Condition {
            call: ("clone", libc::SYS_clone),
            argument: 0,
            is: Is::Without(NAMESPACE_FLAGS),
        },
        Condition { call: ("socket", libc::SYS_socket), argument: 0, is: Is::Not(AF_VSOCK) },
        Condition { call: ("ioctl", libc::SYS_ioctl), argument: 1, is: Is::Not(SET_PROJECT) },
    ];
    all.extend(PERSONALITIES.map(|domain| Condition {
        call: ("personality", libc::SYS_personality),
        argument: 0,
        is: Is::Exactly(domain),
    }));
    all
}

impl Condition {
    fn rule(&self) -> Result<SeccompRule, BackendError> {
        let (op, value) = match self.is {
            Is::Without(bits) => (Op::MaskedEq(bits), 0),
            Is::Not(value) => (Op::Ne, value),
            Is::Exactly(value) => (Op::Eq, value),
        };
        SeccompRule::new(vec![SeccompCondition::new(self.argument, Len::Dword, op, value)?])
    }

    /// The kernel takes these arguments as 32 bits, the library compares 64: what a call must not be
    /// is said bit by bit, so that nothing in the upper half makes it another.
    fn section(&self) -> Vec<Value> {
        let row = |op: &str, value: u64, value_two: u64| {
            let argument =
                json!({"index": self.argument, "value": value, "valueTwo": value_two, "op": op});
            json!({"names": [self.call.0], "action": "SCMP_ACT_ALLOW", "args": [argument]})
        };
        match self.is {
            Is::Without(bits) => vec![row("SCMP_CMP_MASKED_EQ", bits, 0)],
            Is::Exactly(value) => vec![row("SCMP_CMP_EQ", value, 0)],
            Is::Not(value) => (0..32)
                .map(|bit| 1_u64 << bit)
                .map(|bit| row("SCMP_CMP_MASKED_EQ", bit, !value & bit))
                .collect(),
        }
    }
}

/// Whose kernel the calls of a container reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The machine's.
    Machines,
    /// One that the runtime brings.
    OfTheRuntime,
}

/// The filter as the `seccomp` section of an OCI configuration. What it cannot say: ENOSYS for calls
/// newer than the list. runc answers that by itself; with another runtime such a call gets EPERM.
///
/// runsc knows no other error than EPERM, after which no C library tries `clone` in place of `clone3`:
/// not one thread could be made. Its own kernel has the call, and a namespace that is made by it is
/// one of that kernel, so there it is allowed.
pub(crate) fn section(kernel: Kernel) -> Value {
    let bare = |text: &'static str| text.rsplit_once("SYS_").map_or(text, |(_, name)| name);
    let names: Vec<_> = allowed::ALLOWED.iter().map(|(text, _)| bare(text)).collect();
    let clone3 = match kernel {
        Kernel::Machines => {
            json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS})
        }
        Kernel::OfTheRuntime => json!({"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}),
    };
    let mut calls = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"}), clone3];
    calls.extend(conditions().iter().flat_map(Condition::section));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [ARCH_NAME],
        "syscalls": calls,
    })
}

/// Compiles the filter for the machine that this program was built for.
pub(crate) fn compile() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed::ALLOWED.iter().map(|(_, number)| (*number, Vec::new())).collect();
    for condition in conditions() {
        rules.entry(condition.call.1).or_default().push(condition.rule()?);
    }
    let newest = rules.keys().next_back().copied().unwrap_or(0).max(libc::SYS_clone3);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let main: BpfProgram =
        SeccompFilter::new(rules, refused, SeccompAction::Allow, ARCH.0)?.try_into()?;
    let mut program = unknown_calls(u32::try_from(newest).expect("system call numbers are small"));
    program.extend(main);
    Ok(program)
}

/// Answers ENOSYS to `clone3` and to calls newer than `newest`, and falls through to what follows
/// for all others, a foreign ABI included.
fn unknown_calls(newest: u32) -> BpfProgram {
    const LOAD: u16 = 0x20;
    const RETURN: u16 = 0x06;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const NUMBER_OFFSET: u32 = 0;
    const ARCH_OFFSET: u32 = 4;
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let clone3 = u32::try_from(libc::SYS_clone3).expect("system call numbers are small");
    vec![
        sock_filter { code: LOAD, jt: 0, jf: 0, k: ARCH_OFFSET },
        sock_filter { code: JUMP_EQUAL, jt: 0, jf: 4, k: ARCH.1 },
        sock_filter { code: LOAD, jt: 0, jf: 0, k: NUMBER_OFFSET },
        sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: clone3 },
        sock_filter { code: JUMP_GREATER, jt: 0, jf: 1, k: newest },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: enosys },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiles_within_the_kernels_bound() {
        let program = compile().unwrap();
        assert!(program.len() > 300 && program.len() < 4096, "{}", program.len());
    }

    /// The filter binds the calling thread alone, so a thread of its own tries it.
    #[test]
    fn refusals_have_the_right_error() {
        let program = compile().unwrap();
        let errors = std::thread::spawn(move || {
            seccompiler::apply_filter(&program).unwrap();
            let call_with = |number: i64, first: u64, second: u64| {
                // SAFETY: each call is refused by the filter or fails on its null arguments.
                let result = unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) };
                if result < 0 { std::io::Error::last_os_error().raw_os_error() } else { None }
            };
            let call = |number, argument| call_with(number, argument, 0);
            [
                call(libc::SYS_clone3, 0),
                call(100_000, 0),
                call(libc::SYS_unshare, libc::CLONE_NEWUSER as u64),
                call(libc::SYS_clone, (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64),
                call(libc::SYS_socket, AF_VSOCK),
                call(libc::SYS_personality, 0x40000),
                call(libc::SYS_personality, 0xffff_ffff),
                call(libc::SYS_bpf, 0),
                call(libc::SYS_getpid, 0),
                call_with(libc::SYS_ioctl, u64::MAX, SET_PROJECT),
                call_with(libc::SYS_ioctl, u64::MAX, 0x5401),
            ]
        });
        let (enosys, eperm) = (Some(libc::ENOSYS), Some(libc::EPERM));
        let ebadf = Some(libc::EBADF);
        let expected =
            [enosys, enosys, eperm, eperm, eperm, eperm, None, eperm, None, eperm, ebadf];
        assert_eq!(errors.join().unwrap(), expected);
    }

    #[test]
    fn no_call_that_reaches_beyond_the_container_is_listed() {
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_syslog,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_quotactl,
            libc::SYS_acct,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_clone3,
        ] {
            assert!(allowed::ALLOWED.iter().all(|(_, listed)| *listed != number), "{number}");
        }
    }

    #[test]
    fn the_section_for_other_runtimes_says_the_same() {
        let parsed: oci_spec::runtime::LinuxSeccomp =
            serde_json::from_value(section(Kernel::Machines)).unwrap();
        assert_eq!(parsed.default_errno_ret(), Some(1));
        let calls = parsed.syscalls().as_ref().unwrap();
        assert_eq!(calls[0].names().len(), allowed::ALLOWED.len());
        assert!(calls[0].names().iter().all(|name| !name.contains("SYS") && !name.is_empty()));
        for (_, number) in allowed::ALLOWED {
            let listed = conditions().iter().any(|condition| condition.call.1 == *number);
            assert!(!listed, "{number} is allowed whatever its arguments, and has a condition");
        }
        let rows: usize = conditions().iter().map(|condition| condition.section().len()).sum();
        assert_eq!(calls.len(), 2 + rows);
    }
}
