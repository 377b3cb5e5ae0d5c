//! Which tests run in the virtual machine, and which of them do not.

/// The cgroup that a test process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The top of the hierarchy.
    Root,
    /// One that systemd delegated, in which the test also makes its own.
    Unit,
}

/// Tests of one package that run in the machine.
pub struct Chosen {
    /// The package's name without `longshore-`.
    pub package: &'static str,
    /// How the names of the tests begin; no beginning means all of them.
    pub beginnings: &'static [&'static str],
    /// Where they run.
    pub place: Place,
}

/// What meets the kernel, and a few end-to-end tests.
pub const CHOSEN: &[Chosen] = &[
    // First, while the unit's cgroup is as systemd made it.
    Chosen {
        package: "runtime",
        beginnings: &["embedded::limits::", "crun::limits::"],
        place: Place::Unit,
    },
    // What takes longest begins first.
    Chosen { package: "e2e", beginnings: &["service::"], place: Place::Root },
    Chosen { package: "runtime", beginnings: &[], place: Place::Root },
    Chosen {
        package: "image",
        beginnings: &[
            "mount::",
            "pull::tests::a_pulled_image",
            "pull::tests::forms::every_way",
            "unpack::tests::attributes",
        ],
        place: Place::Root,
    },
    Chosen {
        package: "network",
        beginnings: &["isolation::", "repair::", "users::"],
        place: Place::Root,
    },
    // On the quotas of its root, which other machines mostly lack.
    Chosen { package: "disk", beginnings: &[], place: Place::Root },
    Chosen { package: "node", beginnings: &["disk::", "machine::"], place: Place::Root },
];

/// A test that is not run in the machine.
pub struct LeftOut {
    /// `PACKAGE TEST` as the reports name it, or the beginning of it.
    pub name: &'static str,
    /// What stands in the way.
    pub why: &'static str,
}

/// What is left out of the chosen, so that the machine is done in minutes.
pub const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        name: "runtime runsc::",
        why: "it brings a kernel of its own, and that of the machine that builds is enough for it",
    },
    LeftOut { name: "runtime embedded::logs::", why: LOGS },
    LeftOut { name: "runtime crun::logs::", why: LOGS },
    LeftOut { name: "runtime embedded::attach::", why: STREAMS },
    LeftOut { name: "runtime crun::attach::", why: STREAMS },
    LeftOut { name: "runtime crun::copying::", why: COMMAND_LINE },
    LeftOut { name: "runtime crun::end::", why: COMMAND_LINE },
    LeftOut { name: "runtime crun::exec::", why: COMMAND_LINE },
    LeftOut { name: "runtime crun::survival::", why: CRUN },
    LeftOut { name: "runtime crun::start::twenty_start_at_once", why: CRUN },
    LeftOut {
        name: "runtime embedded::survival::a_shim_survives_what_it_does_not_understand",
        why: "what a shim is told, whatever the kernel",
    },
    LeftOut { name: "runtime runc::attach::", why: RUNC },
    LeftOut { name: "runtime runc::copying::", why: RUNC },
    LeftOut { name: "runtime runc::end::", why: RUNC },
    LeftOut { name: "runtime runc::escapes::", why: RUNC },
    LeftOut { name: "runtime runc::exec::", why: RUNC },
    LeftOut { name: "runtime runc::logs::", why: LOGS },
    LeftOut { name: "runtime runc::protection::", why: RUNC },
    LeftOut { name: "runtime runc::start::", why: RUNC },
    LeftOut { name: "runtime runc::survival::", why: RUNC },
];

const COMMAND_LINE: &str =
    "what is asked of crun, whatever the kernel; what the kernel has a say in runs as embedded::";
const CRUN: &str = "a start by crun takes seconds here; `cargo xtask vm test crun::` runs them, and nothing else does";
const LOGS: &str = "the shim writes the log, whatever the kernel";
const RUNC: &str =
    "a start by runc takes seconds here; its limits are what the kernel has a say in";
const STREAMS: &str = "the shim moves what is read and written, whatever the kernel";
