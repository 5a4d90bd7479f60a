//! What the kernel knows of a process.

use std::process::Command;

/// Memory that the process has resident, in KiB.
pub(crate) fn memory_kib(pid: u32) -> u64 {
    field(pid, "VmRSS:")
}

/// The most that it ever had, in KiB.
pub(crate) fn peak_memory_kib(pid: u32) -> u64 {
    field(pid, "VmHWM:")
}

/// Files and sockets that it has open.
#[allow(dead_code, reason = "only the chaos suite does")]
pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Lets a process open `count` files, which the hard limit has to allow.
pub(crate) fn limit_open_files(pid: u32, count: u64) {
    let status = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={count}:"))
        .status()
        .unwrap();
    assert!(
        status.success(),
        "prlimit cannot set the limit on open files to {count}"
    );
}
