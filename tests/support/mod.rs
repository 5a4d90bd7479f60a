//! What makes a test a sentence: clusters, proxies, links that fail on command, and clients that speak by hand.
//!
//! Everything here is real: servers and proxies are processes of the binary under test. What a test starts ends with
//! it ([`guardian`]), ports never collide between runs ([`ports`]), and waits are for a condition ([`until`]).

mod cluster;
pub(crate) mod guardian;
mod http;
mod link;
pub(crate) mod ports;
mod process;
mod program;
mod proxy;
mod replay;
mod script;
mod wire;

pub(crate) use cluster::Cluster;
#[allow(unused_imports, reason = "only the integration tests do")]
pub(crate) use cluster::Node;
pub(crate) use http::get;
#[allow(unused_imports, reason = "only the chaos suite does")]
pub(crate) use link::Silent;
pub(crate) use link::{Act, Frame, Link};
#[allow(unused_imports, reason = "only the chaos suite does")]
pub(crate) use process::open_files;
pub(crate) use process::{limit_open_files, memory_kib, peak_memory_kib};
pub(crate) use program::{Program, compiled, node, python};
pub(crate) use proxy::{Proxy, Wanted};
#[allow(unused_imports, reason = "only the integration tests do")]
pub(crate) use replay::{HeldUp, Replay};
pub(crate) use script::{Script, differential, differential_on};
#[allow(unused_imports, reason = "only the integration tests and the chaos suite do")]
pub(crate) use wire::Answer;
#[allow(unused_imports, reason = "only the drills and the chaos suite do")]
pub(crate) use wire::Refusal;
pub(crate) use wire::{Address, Client, Message, cancel, message};

use std::time::{Duration, Instant};

/// The limit of every wait for something that takes a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The limit of a wait for something that takes the cluster a while: a failover, a node that rejoins.
pub(crate) const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `look` finds something.
///
/// # Panics
/// When it does not within `limit`.
#[track_caller]
pub(crate) fn until_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(LOOK);
    }
}

/// [`until_within`] the usual patience, for a condition.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_within(PATIENCE, what, || holds().then_some(()));
}

/// The commit that is tested, for reports; "dirty" where files differ from it.
#[allow(dead_code, reason = "only the drills and the chaos suite report")]
pub(crate) fn commit() -> String {
    let told = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .output();
    match told {
        Ok(told) if told.status.success() => String::from_utf8_lossy(&told.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
