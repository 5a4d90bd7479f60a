//! Metrics of the process itself, under the names that Prometheus' client libraries share.
//!
//! Read from /proc when somebody scrapes. On another system than Linux nothing is found and nothing is told.

use std::fs;

use super::exposition::{Kind, family};

/// Ticks in a second of processor time, as /proc tells it: `USER_HZ` is 100 on every architecture that Rust's tier 1
/// and 2 know (proc(5), sysconf(3)).
const TICKS_PER_SECOND: f64 = 100.0;

/// What /proc/self/stat tells.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// After the system's start.
    start_seconds: f64,
}

/// Appends what can be found out about the process, in Prometheus' text format.
pub fn render(out: &mut String) {
    if let Some(stat) = read("/proc/self/stat").as_deref().and_then(parse_stat) {
        let help = "Total user and system CPU time spent in seconds.";
        single(
            out,
            Kind::Counter,
            "process_cpu_seconds_total",
            help,
            Some(stat.cpu_seconds),
        );
        single(
            out,
            Kind::Gauge,
            "process_threads",
            "Number of OS threads in the process.",
            Some(stat.threads),
        );
        let boot = read("/proc/stat")
            .as_deref()
            .and_then(|text| number_after(text, "btime"));
        let start = boot.map(|boot| boot as f64 + stat.start_seconds);
        let help = "Start time of the process since unix epoch in seconds.";
        single(out, Kind::Gauge, "process_start_time_seconds", help, start);
    }
    if let Some(status) = read("/proc/self/status") {
        let bytes = |name| number_after(&status, name).map(|kib| kib * 1024);
        single(
            out,
            Kind::Gauge,
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            bytes("VmRSS:"),
        );
        single(
            out,
            Kind::Gauge,
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            bytes("VmSize:"),
        );
    }
    single(
        out,
        Kind::Gauge,
        "process_open_fds",
        "Number of open file descriptors.",
        open_descriptors(),
    );
    let most = read("/proc/self/limits")
        .as_deref()
        .and_then(|text| number_after(text, "Max open files"));
    single(
        out,
        Kind::Gauge,
        "process_max_fds",
        "Maximum number of open file descriptors.",
        most,
    );
}

fn single<V: std::fmt::Display>(out: &mut String, kind: Kind, name: &str, help: &str, value: Option<V>) {
    family(out, kind, name, help, value.map(|value| (Vec::new(), value)));
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The first number behind `name`, where a line begins with it.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Fields 14, 15, 20 and 22 of proc(5), "/proc/pid/stat". The second is the program's name in parentheses, which may
/// hold anything, so counting starts behind the last parenthesis, with field 3.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
    Some(Stat {
        cpu_seconds: seconds(field(14)? + field(15)?),
        threads: field(20)?,
        start_seconds: seconds(field(22)?),
    })
}

/// Linux 6.2 and later tell the number as the folder's size; older ones say 0, and the folder is counted.
fn open_descriptors() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // The folder itself is open while it is read.
        0 => Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_parentheses_in_its_name() {
        let text = "7 (a) b) (c) S 1 7 7 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 9 0 1234 1 2 3\n";
        let expected = Stat {
            cpu_seconds: 2.0,
            threads: 9,
            start_seconds: 12.34,
        };
        assert_eq!(parse_stat(text), Some(expected));
        for broken in ["", "7 (a) S 1", "no parenthesis"] {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_process_knows_itself() {
        let mut out = String::new();
        render(&mut out);
        let value = |name: &str| -> f64 {
            let line = out
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {out}"))
                .parse()
                .expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "started {age} s ago");
    }
}
