//! What reaches a standby and what it replays, held back by a test.

use std::process::Command;

use super::{Client, Cluster, until};

/// A standby's walreceiver that stands still: what its upstream sends does not reach it. The server itself goes on.
pub(crate) struct HeldUp {
    pid: String,
}

impl HeldUp {
    pub(crate) fn new(standby: &mut Client) -> Self {
        let pid = standby.value("SELECT pid FROM pg_stat_wal_receiver");
        let held = Self { pid };
        held.signal("STOP");
        held
    }

    /// Ends it before it has read what waits for it.
    pub(crate) fn drop_what_waits(&self) {
        self.signal("TERM");
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.pid);
        let status = Command::new("/bin/sh").args(["-c", &script]).status().unwrap();
        assert!(status.success(), "no process {} takes SIG{name}", self.pid);
    }
}

/// Stops, delays and resumes replay on a standby; what it has replayed it serves all the while. Ends with this value.
pub(crate) struct Replay {
    standby: Client,
    delayed: bool,
}

impl Replay {
    /// That of a node. It may just be coming up.
    #[track_caller]
    pub(crate) fn of(cluster: &Cluster, node: &str) -> Self {
        let mut connected = None;
        until(&format!("{node} to answer"), || {
            connected = cluster.superuser(cluster.node(node)).try_connect(&[]).ok();
            connected.is_some()
        });
        Self {
            standby: connected.expect("it has answered"),
            delayed: false,
        }
    }

    /// Stops it, and returns when it stands.
    pub(crate) fn pause(&mut self) {
        self.standby.run("SELECT pg_wal_replay_pause()");
        let standby = &mut self.standby;
        until("replay to stand", || {
            standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused"
        });
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) {
        self.standby.run("SELECT pg_wal_replay_resume()");
    }

    /// Holds every commit back for so many milliseconds from when the primary wrote it.
    pub(crate) fn delay(&mut self, milliseconds: u64) {
        self.delayed = true;
        self.standby.run(&format!(
            "ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds}"
        ));
        self.standby.run("SELECT pg_reload_conf()");
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let _ = self.standby.query("SELECT pg_wal_replay_resume()");
        if self.delayed {
            let _ = self.standby.query("ALTER SYSTEM RESET recovery_min_apply_delay");
            let _ = self.standby.query("SELECT pg_reload_conf()");
        }
    }
}
