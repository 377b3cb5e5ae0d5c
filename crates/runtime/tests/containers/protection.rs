//! What a container cannot do.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use longshore_runtime::{CAPABILITIES, MASKED_PATHS, READONLY_PATHS, resolve_user};

use crate::bed::{Bed, shim_of};

fn expected_capabilities() -> String {
    let bits: u64 = CAPABILITIES.iter().map(|capability| 1 << capability.number).sum();
    format!("{bits:016x}")
}

/// Asserts the lines of `/proc/<pid>/status` that show protections.
pub fn assert_protected(status: &str, effective: &str) {
    for line in [
        "Seccomp:\t2".to_owned(),
        "Seccomp_filters:\t1".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
        "CapInh:\t0000000000000000".to_owned(),
        "CapAmb:\t0000000000000000".to_owned(),
        format!("CapPrm:\t{effective}"),
        format!("CapEff:\t{effective}"),
        format!("CapBnd:\t{}", expected_capabilities()),
    ] {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in {status}");
    }
}

pub fn assert_protected_root(status: &str) {
    assert_protected(status, &expected_capabilities());
}

#[tokio::test]
async fn the_kernel_shows_every_protection() {
    let bed = Bed::new();
    assert_protected_root(&bed.output("cat /proc/1/status /proc/self/status").await);
    assert!(CAPABILITIES.iter().all(|capability| capability.name != "CAP_MKNOD"));
    bed.finish().await;
}

#[tokio::test]
async fn another_user_has_no_capabilities_and_can_open_its_output() {
    let bed = Bed::new();
    let mut spec = bed.script("cat /proc/1/status; id; echo opened > /dev/stdout; echo $HOME");
    spec.user = resolve_user(&spec.rootfs, "web").expect("web is in the image");
    let (record, output) = bed.run(&spec).await;
    assert_protected(&output, "0000000000000000");
    assert!(output.contains("uid=33(web) gid=34(web) groups=34(web),40(log)"), "{output}");
    assert!(output.contains("opened\n/srv\n"), "{output} {record:?}");
    bed.finish().await;
}

#[tokio::test]
async fn forbidden_calls_are_refused() {
    let bed = Bed::new();
    let disk = fs::metadata("/").expect("the host's root").dev();
    let (major, minor) = (libc::major(disk), libc::minor(disk));
    let script = format!(
        "unshare -U true; unshare -m true; mount -t tmpfs none /tmp; mount -o bind /bin /tmp; \
         mknod /tmp/disk b {major} {minor}; mknod /tmp/null c 1 3; hostname other; \
         ls /dev; ls /tmp"
    );
    let output = bed.output(&script).await;
    let refused = output.matches("Operation not permitted").count()
        + output.matches("ermission denied").count();
    assert_eq!(refused, 7, "{output}");
    let devices: Vec<&str> =
        output.lines().filter(|line| !line.contains(':') && *line != "kcore").collect();
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    assert_eq!(devices, expected, "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn the_hosts_disk_cannot_be_opened_even_through_a_node_in_the_image() {
    let bed = Bed::new();
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
    assert_eq!(output.matches("Operation not permitted").count(), 2, "{output}");
    assert!(output.contains(" 00"), "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn masked_paths_are_empty_and_kernel_settings_read_only() {
    let bed = Bed::new();
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
    let output = bed.output(&script).await;
    assert!(output.starts_with("read\n") && !output.contains("open"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn no_descriptor_of_the_host_is_inherited() {
    let bed = Bed::new();
    let output = bed.output("ls -l /proc/1/fd; ls -l /proc/1/cwd").await;
    let descriptors: Vec<&str> = output.lines().filter(|line| line.contains("/fd")).collect();
    assert!(descriptors.is_empty(), "{output}");
    let arrows: Vec<&str> =
        output.lines().filter_map(|line| line.split(' ').rev().nth(2)).collect();
    assert_eq!(arrows, ["0", "1", "2", "/proc/1/cwd"], "{output}");
    assert!(output.contains("0 -> /dev/null"), "{output}");
    assert_eq!(output.matches("-> pipe:").count(), 2, "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn the_program_of_the_shim_cannot_be_written_to() {
    let bed = Bed::new();
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let link = format!("/proc/{}/exe", shim_of(&running));
    // Refused for the mount; were it not, the kernel would refuse it because the program runs.
    let opened = fs::OpenOptions::new().write(true).truncate(true).open(link);
    assert_eq!(opened.expect_err("it is read-only").raw_os_error(), Some(libc::EROFS));
    bed.finish().await;
}

#[tokio::test]
async fn namespaces_are_the_containers_own() {
    let bed = Bed::new();
    let output = bed
        .output("hostname; ps | wc -l; ip link | grep -c '^[0-9]'; cat /proc/self/cgroup | head -1")
        .await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[2]), ("box", "1"), "{output}");
    assert!(lines[1].parse::<u32>().expect("a count") <= 4, "{output}");
    assert!(lines[3].ends_with(":/"), "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn a_network_namespace_can_be_joined() {
    let bed = Bed::new();
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let path = format!("/proc/{}/ns/net", running.pid());
    let mut spec = bed.spec(&["stat", "-L", "-c", "%i", "/proc/self/ns/net"]);
    spec.netns = Some(path.clone().into());
    let (_, output) = bed.run(&spec).await;
    let expected = fs::metadata(path).expect("the namespace").ino();
    assert_eq!(output.trim(), expected.to_string());
    bed.finish().await;
}
