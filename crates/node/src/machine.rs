//! What the machine has to offer.

use longshore_types::{ByteCount, Capacity, MilliCpu};

use crate::NodeError;

/// Kept back for the system and Longshore itself.
const RESERVED_MEMORY: ByteCount = ByteCount::mib(512);

fn read(path: &'static str) -> Result<String, NodeError> {
    std::fs::read_to_string(path).map_err(|source| NodeError::Machine { path, source })
}

/// How many cores this process may use.
pub fn cores() -> Result<usize, NodeError> {
    std::thread::available_parallelism()
        .map(usize::from)
        .map_err(|source| NodeError::Machine { path: "sched_getaffinity", source })
}

/// What this machine offers to instances: its cores times `cpu_overcommit`, its memory less what is
/// kept back, and the room that was found on its `disk`.
pub fn capacity(cpu_overcommit: f64, disk: ByteCount) -> Result<Capacity, NodeError> {
    let cores = u32::try_from(cores()?).unwrap_or(u32::MAX);
    // Whole thousandths of an overcommit factor are exact enough, and keep the arithmetic integer.
    let factor = (cpu_overcommit * 1000.0).clamp(1.0, 1e6).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
    let factor = factor as u32;
    let memory = total_memory(&read("/proc/meminfo")?).unwrap_or_default();
    Ok(Capacity {
        cpu: MilliCpu(cores.saturating_mul(factor)),
        memory: ByteCount(memory.0.saturating_sub(RESERVED_MEMORY.0)),
        disk,
    })
}

fn total_memory(meminfo: &str) -> Option<ByteCount> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteCount(kib * 1024))
}

/// Names the kernel and network namespace in which instance addresses mean something.
pub fn network_name() -> Result<String, NodeError> {
    let boot_id = read("/proc/sys/kernel/random/boot_id")?;
    let path = "/proc/self/ns/net";
    let namespace =
        std::fs::read_link(path).map_err(|source| NodeError::Machine { path, source })?;
    Ok(format!("{}/{}", boot_id.trim(), namespace.display()))
}

/// Gives back to the system what the allocator keeps after a pull: tens of MiB of buffers that an
/// agent would otherwise hold for as long as it idles.
pub fn release_memory() {
    // SAFETY: malloc_trim takes no pointers and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_memory_of_the_machine() {
        let text = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(total_memory(text), Some(ByteCount::mib(24)));
        assert_eq!(total_memory("nothing"), None);
    }

    #[test]
    fn this_machine_offers_something() {
        let disk = ByteCount::gib(1);
        let single = capacity(1.0, disk).unwrap();
        assert!(single.cpu.0 >= 1000 && single.memory.0 > 0);
        assert_eq!(capacity(4.0, disk).unwrap().cpu.0, single.cpu.0 * 4);
    }
}
