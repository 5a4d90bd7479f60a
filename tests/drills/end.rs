//! When a server ended or was stopped, by the kernel's word and not by that of a client.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Cluster, LONG_PATIENCE};

const INTERVAL: Duration = Duration::from_millis(1);

/// A server that is looked at all the time until its first process, the postmaster, runs no more.
pub(crate) struct End(JoinHandle<Instant>);

impl End {
    pub(crate) fn watch(cluster: &Cluster, node: &str) -> Self {
        let file = cluster.dir().join(node).join("data/postmaster.pid");
        let text = std::fs::read_to_string(&file).unwrap();
        let pid: u32 = text.lines().next().unwrap().parse().unwrap();
        assert!(runs(pid), "{node} does not run");
        Self(thread::spawn(move || last_seen(pid)))
    }

    /// The last moment at which it was seen to run: on a busy machine a little before its end, never behind it.
    #[track_caller]
    pub(crate) fn seen(self) -> Instant {
        self.0.join().expect("the server ends")
    }
}

fn last_seen(pid: u32) -> Instant {
    let deadline = Instant::now() + LONG_PATIENCE;
    let mut last = Instant::now();
    loop {
        let now = Instant::now();
        if !runs(pid) {
            return last;
        }
        assert!(now < deadline, "process {pid} goes on");
        last = now;
        thread::sleep(INTERVAL);
    }
}

/// Neither gone, nor dead and not reaped, nor stopped: the field behind the name in `/proc/PID/stat` (proc(5)).
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X' | 'T' | 't'))
}
