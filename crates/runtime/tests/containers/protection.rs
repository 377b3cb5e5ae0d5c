//! What a container cannot do.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use longshore_runtime::{CAPABILITIES, MASKED_PATHS, READONLY_PATHS, resolve_user};

use crate::bed::{Bed, give, shim_of};

fn expected_capabilities() -> String {
    let bits: u64 = CAPABILITIES.iter().map(|capability| 1 << capability.number).sum();
    format!("{bits:016x}")
}

/// Asserts the lines of `/proc/<pid>/status` that show protections. A sandbox's kernel does not print
/// all of them.
pub fn assert_protected(bed: &Bed, status: &str, effective: &str) {
    let everywhere = [
        "CapInh:\t0000000000000000".to_owned(),
        format!("CapPrm:\t{effective}"),
        format!("CapEff:\t{effective}"),
        format!("CapBnd:\t{}", expected_capabilities()),
    ];
    let by_linux =
        ["Seccomp:\t2", "Seccomp_filters:\t1", "NoNewPrivs:\t1", "CapAmb:\t0000000000000000"];
    let by_linux = by_linux.map(str::to_owned).into_iter().filter(|_| !bed.is_sandboxed());
    for line in everywhere.into_iter().chain(by_linux) {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in {status}");
    }
}

pub fn assert_protected_root(bed: &Bed, status: &str) {
    assert_protected(bed, status, &expected_capabilities());
}

pub async fn the_kernel_shows_every_protection(bed: Bed) {
    let status = bed.output("cat /proc/1/status /proc/self/status").await;
    assert_protected_root(&bed, &status);
    assert!(status.contains("Seccomp:\t2"), "{status}");
    assert!(CAPABILITIES.iter().all(|capability| capability.name != "CAP_MKNOD"));
    bed.finish().await;
}

pub async fn another_user_has_no_capabilities_and_can_open_its_output(bed: Bed) {
    let mut spec = bed.script("cat /proc/1/status; id; echo opened > /dev/stdout; echo $HOME");
    spec.user = resolve_user(&spec.rootfs, "web").expect("web is in the image");
    let (record, output) = bed.run(&spec).await;
    assert_protected(&bed, &output, "0000000000000000");
    assert!(output.contains("uid=33(web) gid=34(web) groups=34(web),40(log)"), "{output}");
    assert!(output.contains("opened\n/srv\n"), "{output} {record:?}");
    bed.finish().await;
}

pub async fn forbidden_calls_are_refused(bed: Bed) {
    let disk = fs::metadata("/").expect("the host's root").dev();
    let (major, minor) = (libc::major(disk), libc::minor(disk));
    let script = format!(
        "unshare -U true; unshare -m true; mount -t tmpfs none /tmp; mount -o bind /bin /tmp; \
         mknod /tmp/disk b {major} {minor}; mknod /tmp/null c 1 3; hostname other; \
         ls /dev; ls /tmp"
    );
    let spec = bed.script(&script);
    let (_, output) = bed.run(&spec).await;
    let refused = output.matches("Operation not permitted").count()
        + output.matches("ermission denied").count();
    // A sandbox's kernel makes device nodes in its own memory, that open devices of its own.
    assert_eq!(refused, if bed.is_sandboxed() { 5 } else { 7 }, "{output}");
    assert!(!spec.rootfs.join("tmp/disk").exists(), "{output}");
    // A link to what is masked, by one name or the other.
    let link = |line: &str| line == "core" || line == "kcore";
    let devices: Vec<&str> =
        output.lines().filter(|line| !line.contains(':') && !link(line)).collect();
    if bed.is_sandboxed() {
        // These are its kernel's, which has no other devices.
        assert!(devices.iter().all(|device| !device.starts_with("sd")), "{output}");
        bed.finish().await;
        return;
    }
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    assert_eq!(devices, expected, "{output}");
    bed.finish().await;
}

pub async fn the_hosts_disk_cannot_be_opened_even_through_a_node_in_the_image(bed: Bed) {
    let spec = bed.script(
        "dd if=/disk of=/dev/null bs=512 count=1; dd if=/kmsg of=/dev/null bs=1 count=1; \
         head -c 1 /dev/zero | od -An -tx1",
    );
    let disk = fs::metadata("/").expect("the host's root").dev();
    for (name, kind, device) in
        [("disk", libc::S_IFBLK, disk), ("kmsg", libc::S_IFCHR, libc::makedev(1, 11))]
    {
        let kind = rustix::fs::FileType::from_raw_mode(kind);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, spec.rootfs.join(name), kind, mode, device)
            .expect("the test makes a node");
    }
    let (_, output) = bed.run(&spec).await;
    let refused = output.matches("Operation not permitted").count();
    assert!(refused == 2 || bed.is_sandboxed(), "{output}");
    assert!(!output.contains("records in") && output.contains(" 00"), "{output}");
    bed.finish().await;
}

pub async fn masked_paths_are_empty_and_kernel_settings_read_only(bed: Bed) {
    let masked = MASKED_PATHS.join(" ");
    let readonly = READONLY_PATHS.join(" ");
    let script = format!(
        "for path in {masked}; do \
           [ -d $path ] && ls $path; [ -f $path ] && cat $path; [ -c $path ] && cat $path; done; \
         echo read; \
         for path in {readonly}; do \
           [ -e $path ] && ! grep -q \" $path ro,\" /proc/self/mountinfo && echo open $path; done; \
         touch /sys/x; echo x > /proc/sys/kernel/domainname"
    );
    let before = fs::read("/proc/sys/kernel/domainname").expect("a setting");
    let output = bed.output(&script).await;
    assert_eq!(fs::read("/proc/sys/kernel/domainname").expect("a setting"), before);
    assert!(output.starts_with("read\n"), "{output}");
    // The settings of a sandbox's kernel are its own.
    if !bed.is_sandboxed() {
        assert!(!output.contains("open"), "{output}");
        assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    }
    bed.finish().await;
}

pub async fn no_descriptor_of_the_host_is_inherited(bed: Bed) {
    let output = bed.output("ls -l /proc/1/fd; ls -l /proc/1/cwd").await;
    let descriptors: Vec<&str> = output.lines().filter(|line| line.contains("/fd")).collect();
    assert!(descriptors.is_empty(), "{output}");
    let arrows: Vec<&str> =
        output.lines().filter_map(|line| line.split(' ').rev().nth(2)).collect();
    assert_eq!(arrows, ["0", "1", "2", "/proc/1/cwd"], "{output}");
    if !bed.is_sandboxed() {
        assert!(output.contains("0 -> /dev/null"), "{output}");
        assert_eq!(output.matches("-> pipe:").count(), 2, "{output}");
    }
    bed.finish().await;
}

pub async fn the_program_of_the_shim_cannot_be_written_to(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let link = format!("/proc/{}/exe", shim_of(&running));
    // Refused for the mount; were it not, the kernel would refuse it because the program runs.
    let opened = fs::OpenOptions::new().write(true).truncate(true).open(link);
    assert_eq!(opened.expect_err("it is read-only").raw_os_error(), Some(libc::EROFS));
    bed.finish().await;
}

pub async fn namespaces_are_the_containers_own(bed: Bed) {
    let output = bed
        .output(
            "hostname; ps | wc -l; ip link | grep -vc '^[0-9]*: lo\\|^ '; cat /proc/self/cgroup",
        )
        .await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[2]), ("box", "0"), "{output}");
    assert!(lines[1].parse::<u32>().expect("a count") <= 4, "{output}");
    assert!(lines[3..].iter().all(|line| line.ends_with(":/")), "{output}");
    bed.finish().await;
}

pub async fn a_network_namespace_can_be_joined(bed: Bed) {
    let first = bed.spec(&["sleep", "1000"]);
    let running = bed.start(&first).await;
    let path = format!("/proc/{}/ns/net", running.pid());
    let mut spec = bed.spec(&["sleep", "1000"]);
    spec.netns = Some(path.clone().into());
    // It belongs to the user namespace of the other one.
    if let Some(users) = first.users {
        give(&spec.rootfs, users.ids.first());
        spec.users = Some(users);
    }
    let joined = format!("/proc/{}/ns/net", bed.start(&spec).await.pid());
    let inode = |path| fs::metadata(path).expect("the namespace").ino();
    assert_eq!(inode(joined), inode(path));
    bed.finish().await;
}
