//! Ports that no other test run on this machine has: blocks, each held by a lock on a file for as long as the process
//! lives.
//!
//! They lie below the range from which the kernel takes ports for outgoing connections (32768 on), so nothing else
//! takes one in between.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

const FIRST: u16 = 24_000;
const LAST: u16 = 27_960;
/// Enough for a cluster: monitor, six nodes, the proxy and its HTTP.
pub(crate) const BLOCK: u16 = 10;

const LOCKS: &str = "/tmp/halyard-test-ports";

/// Blocks of this process; the locks last until it ends.
static BLOCKS: Mutex<Vec<(File, u16)>> = Mutex::new(Vec::new());
/// The rest of the block from which single ports are taken.
static SINGLE: Mutex<std::ops::Range<u16>> = Mutex::new(0..0);

/// The first port of a block of [`BLOCK`] free ones.
pub(crate) fn block() -> u16 {
    std::fs::create_dir_all(LOCKS).unwrap();
    // Other users may run tests too.
    let _ = std::fs::set_permissions(LOCKS, PermissionsExt::from_mode(0o1777));
    let mut blocks = BLOCKS.lock().unwrap();
    for base in (FIRST..LAST).step_by(usize::from(BLOCK)) {
        let path = Path::new(LOCKS).join(base.to_string());
        let Ok(file) = File::options().create(true).append(true).open(path) else {
            continue;
        };
        if file.try_lock().is_ok() && (base..base + BLOCK).all(is_free) {
            blocks.push((file, base));
            return base;
        }
    }
    panic!("no block of ports is free between {FIRST} and {LAST}");
}

/// A free port.
pub(crate) fn single() -> u16 {
    let mut rest = SINGLE.lock().unwrap();
    loop {
        match rest.find(|port| is_free(*port)) {
            Some(port) => return port,
            None => {
                let base = block();
                *rest = base..base + BLOCK;
            }
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
