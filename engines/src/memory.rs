//! Memory of the machine and of this process.
//!
//! Everything is read from the kernel's text files. If they are missing, the result is `None`.

use bundle::units::ByteCount;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Memory of the machine, or of the control group of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Total memory.
    pub total: ByteCount,
    /// Memory that can be used without swapping.
    pub available: ByteCount,
}

/// Returns the memory that this process may use: the machine's, or less if a control group (for example a container's)
/// limits it.
pub fn memory() -> Option<Memory> {
    let machine = detect(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(limited(machine, &limits(&groups, Path::new("/sys/fs/cgroup"))))
}

/// Returns the resident anonymous memory of this process: its allocations without mapped files.
pub fn resident_anonymous() -> Option<ByteCount> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// Returns the resident memory of this process that is mapped from files. The system may drop such pages and read them
/// again.
pub fn resident_mapped() -> Option<ByteCount> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "RssFile:")
}

/// Returns freed memory that the allocator still holds to the system.
///
/// Takes a few milliseconds. Call it after closing something large. Only glibc supports it.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call into the C library")]
    // SAFETY: malloc_trim takes the allocator's own locks and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Memory that changes by less than this between two readings is at rest.
const AT_REST: u64 = 64 << 10;
/// The time between two readings. Threads that have ended must run once more to give their memory back.
const READING: Duration = Duration::from_millis(20);
/// Readings in a row that must find memory at rest.
const READINGS_AT_REST: usize = 3;
/// The most readings that are made.
const MOST_READINGS: usize = 50;

/// Returns the resident anonymous memory of this process once freed memory has been returned to the system.
///
/// ONNX Runtime gives back some of a session's memory after it is closed, in threads that are ending: megabytes, and on
/// a busy machine hundreds of milliseconds later. So this waits until memory is at rest: 60 ms, and a second at most.
pub fn settled_anonymous() -> Option<ByteCount> {
    let mut last = None;
    let mut at_rest = 0;
    for _ in 0..MOST_READINGS {
        return_freed_memory();
        let found = resident_anonymous()?;
        let is_at_rest = last.is_some_and(|last: ByteCount| last.0.abs_diff(found.0) < AT_REST);
        at_rest = if is_at_rest { at_rest + 1 } else { 0 };
        last = Some(found);
        if at_rest == READINGS_AT_REST {
            break;
        }
        std::thread::sleep(READING);
    }
    last
}

/// The largest remainder of a block that ONNX Runtime's pool does not split off if the block is less than twice the
/// request (`max_dead_bytes_per_chunk`).
const LARGEST_REMAINDER: u64 = 128 << 20;

/// Returns the size to reserve in ONNX Runtime's pool for `bytes` of activations: with room to split the last block.
/// Memory that is reserved and not used is not resident.
pub fn reserved_pool(bytes: ByteCount) -> ByteCount {
    bytes + ByteCount(bytes.0.min(LARGEST_REMAINDER))
}

/// Blocks of at least this many bytes are mapped one by one and returned to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BLOCK: libc::c_int = 1 << 20;

/// Makes the allocator return large blocks to the system when they are freed.
///
/// By default glibc raises the size from which it does so with every large block that is freed, up to 32 MiB. Weights
/// that several threads rearranged while a graph was opened then stay in the heaps of those threads, which
/// [`return_freed_memory`] does not trim. Only glibc needs it.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call into the C library")]
    // SAFETY: mallopt takes the allocator's lock, and any value is valid for this parameter.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BLOCK);
    }
}

/// The minimum over the machine and its control groups.
fn limited(machine: Memory, limits: &[Memory]) -> Memory {
    limits.iter().fold(machine, |least, limit| Memory {
        total: least.total.min(limit.total),
        available: least.available.min(limit.available),
    })
}

/// Reads `/proc/meminfo`.
fn detect(meminfo: &str) -> Option<Memory> {
    Some(Memory { total: field(meminfo, "MemTotal:")?, available: field(meminfo, "MemAvailable:")? })
}

/// Parses a line like `MemTotal:   24684284 kB`.
fn field(text: &str, name: &str) -> Option<ByteCount> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?.trim();
    let kibibytes: u64 = value.strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteCount(kibibytes * 1024))
}

/// File names of a control group version.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Prefix of the counters of cached file pages, which the kernel drops when the group runs out of memory.
    counters: &'static str,
}

const V2: Names = Names { limit: "memory.max", usage: "memory.current", counters: "" };
const V1: Names =
    Names { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", counters: "total_" };

/// The limits of every group in `/proc/self/cgroup` and of its parent groups.
fn limits(groups: &str, root: &Path) -> Vec<Memory> {
    groups
        .lines()
        .filter_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, path) = line.split_once(':')?;
            let path = path.trim_start_matches('/');
            match controllers {
                "" => Some((root.to_owned(), path, V2)),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    Some((root.join("memory"), path, V1))
                }
                _ => None,
            }
        })
        .flat_map(|(root, path, names)| {
            let folders: Vec<PathBuf> = Path::new(path).ancestors().map(|folder| root.join(folder)).collect();
            folders.into_iter().filter_map(move |folder| limit(&folder, &names))
        })
        .collect()
}

fn limit(folder: &Path, names: &Names) -> Option<Memory> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    // Without a limit it is `max`, or a number larger than any memory.
    let total: u64 = read(names.limit)?.trim().parse().ok()?;
    let used: u64 = read(names.usage)?.trim().parse().ok()?;
    let counters = read("memory.stat").unwrap_or_default();
    let cached: u64 = ["active_file", "inactive_file"]
        .iter()
        .filter_map(|name| {
            let name = format!("{}{name} ", names.counters);
            counters.lines().find_map(|line| line.strip_prefix(&name))?.trim().parse::<u64>().ok()
        })
        .sum();
    let available = total.saturating_sub(used.saturating_sub(cached));
    Some(Memory { total: ByteCount(total), available: ByteCount(available) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Memory = Memory { total: ByteCount(24 << 30), available: ByteCount(20 << 30) };

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24684284 kB\nMemFree:        1 kB\nMemAvailable:   22650880 kB\n";
        let memory = detect(text).unwrap();
        assert_eq!(memory.total, ByteCount(24_684_284 * 1024));
        assert_eq!(memory.available, ByteCount(22_650_880 * 1024));
        assert_eq!(detect("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn parent_groups_limit_memory_and_cached_files_count_as_free() {
        let root = tempfile::tempdir().unwrap();
        write(
            &root.path().join("pods"),
            &[
                ("memory.max", "8589934592\n"),
                ("memory.current", "6442450944\n"),
                ("memory.stat", "anon 1\nactive_file 1073741824\ninactive_file 1073741824\n"),
            ],
        );
        write(&root.path().join("pods/job"), &[("memory.max", "max\n"), ("memory.current", "17\n")]);
        let limits = limits("0::/pods/job\n", root.path());
        let expected = Memory { total: ByteCount(8 << 30), available: ByteCount(4 << 30) };
        assert_eq!(limited(MACHINE, &limits), expected);
    }

    #[test]
    fn version_1_control_groups_are_read() {
        let root = tempfile::tempdir().unwrap();
        write(
            &root.path().join("memory/box"),
            &[
                ("memory.limit_in_bytes", "4294967296\n"),
                ("memory.usage_in_bytes", "3221225472\n"),
                ("memory.stat", "inactive_file 5\ntotal_inactive_file 1073741824\n"),
            ],
        );
        let limits = limits("9:name=systemd:/\n4:cpu,memory:/box\n0::/\n", root.path());
        let expected = Memory { total: ByteCount(4 << 30), available: ByteCount(2 << 30) };
        assert_eq!(limited(MACHINE, &limits), expected);
    }

    #[test]
    fn without_a_limit_the_memory_of_the_machine_is_returned() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(limited(MACHINE, &limits("0::/\n", root.path())), MACHINE);
        write(
            &root.path().join("memory"),
            &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "1\n")],
        );
        assert_eq!(limited(MACHINE, &limits("4:memory:/gone\n", root.path())), MACHINE);
    }
}
