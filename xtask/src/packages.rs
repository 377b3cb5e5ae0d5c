//! The Debian packages that the tests use. The product itself needs only `nftables` of them.

use anyhow::{Result, bail};

use crate::command::{output, program, run, succeeds};

/// Each package and what the tests use it for.
const PACKAGES: &[(&str, &str)] = &[
    ("apache2-utils", "ab, a load of requests on real programs"),
    ("attr", "setfattr and getfattr, for layers with extended attributes"),
    ("buildah", "a client that builds and pushes"),
    ("busybox-static", "the program in the small test images"),
    ("ca-certificates", "cargo's downloads"),
    ("chromium", "the browser that looks at the dashboard"),
    ("chromium-driver", "drives it"),
    ("containernetworking-plugins", "networks for podman"),
    ("crun", "a runtime that is driven"),
    ("etcd-server", "a store of the control plane"),
    ("debootstrap", "the minimal Debian that builds, and the base of the programs' images"),
    ("curl", "a user of TLS"),
    ("docker.io", "the client that most people push with; a peer that is measured"),
    ("e2fsprogs", "mkfs.ext4, for disks that fill up and those of the virtual machine; e2fsck"),
    ("erofs-utils", "fsck.erofs, a second reader of images"),
    ("g++", "libFuzzer's runtime, for `cargo xtask fuzz`"),
    ("git", "the list of files to check"),
    ("iproute2", "looking at links and namespaces for leaks"),
    ("iptables", "a dockerd beside ours that drops FORWARD"),
    ("libcap2-bin", "setcap, for layers with file capabilities"),
    ("nftables", "the firewall of the instances"),
    ("openssl", "certificates as operators make them"),
    ("podman", "a client that pushes; builds the images of real programs; a peer that is measured"),
    ("procps", "sysctl, for the network tests"),
    ("prometheus", "promtool, a second opinion on metrics"),
    ("python3", "a second opinion on tar archives"),
    ("python3-grpcio", "a client of gRPC, for the program that serves it"),
    ("qemu-system-x86", "the virtual machine with another kernel"),
    ("runc", "a runtime that is driven, and that of both peers"),
    ("skopeo", "a client that pushes and copies between formats"),
    ("xfsprogs", "mkfs.xfs, for the project quotas of XFS"),
];

/// Installs the packages that are missing, and touches nothing when none is.
pub fn install_missing() -> Result<()> {
    ensure(PACKAGES)
}

/// Installs those of these packages that are missing; each comes with what it is used for.
pub fn ensure(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().map(|(name, _)| *name).filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        eprintln!("all {} packages are installed", packages.len());
        return Ok(());
    }
    if !succeeds(&mut program("apt-get", ["--version"])) {
        bail!("apt-get is not here; install these yourself: {}", missing.join(" "));
    }
    for (name, purpose) in packages.iter().filter(|(name, _)| missing.contains(name)) {
        eprintln!("{name} is missing: {purpose}");
    }
    run(&mut program("apt-get", ["update", "-q"]))?;
    let mut install = program("apt-get", ["install", "-q", "-y", "--no-install-recommends"]);
    run(install.args(missing).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_installed(name: &str) -> bool {
    output(&mut program("dpkg-query", ["-W", "-f", "${db:Status-Status}", name]))
        .is_ok_and(|status| status == "installed")
}
