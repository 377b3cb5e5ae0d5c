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
        beginnings: &["embedded::limits::", "embedded::end::"],
        place: Place::Unit,
    },
    Chosen { package: "runtime", beginnings: &[], place: Place::Root },
    Chosen {
        package: "image",
        beginnings: &["mount::", "pull::tests::a_pulled_image", "unpack::tests::attributes"],
        place: Place::Root,
    },
    Chosen {
        package: "network",
        beginnings: &["beside_docker::", "dns::", "isolation::", "repair::", "users::"],
        place: Place::Root,
    },
    Chosen { package: "store", beginnings: &["embedded::tests::"], place: Place::Root },
    Chosen { package: "node", beginnings: &["disk::", "machine::"], place: Place::Root },
];

/// A test that is not run in the machine.
pub struct LeftOut {
    /// `PACKAGE TEST` as the reports name it, or the beginning of it.
    pub name: &'static str,
    /// What stands in the way.
    pub why: &'static str,
}

/// What is left out of the chosen.
pub const LEFT_OUT: &[LeftOut] = &[LeftOut {
    name: "runtime runsc::",
    why: "a kernel of its own for every container, in an emulated machine, takes too long",
}];
