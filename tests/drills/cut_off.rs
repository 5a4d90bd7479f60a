//! A primary that the engine has lost and Halyard has not: its server runs and answers, but nobody hears its keeper, and
//! the monitor's health checks do not get through.

use std::process::Command;

use crate::support::{Client, Cluster};

/// It lasts until this is dropped.
pub(crate) struct CutOff {
    keepers: Vec<String>,
    monitor: Client,
}

impl CutOff {
    /// Freezes the keeper, and has the monitor note each of its checks of that server as failed: all of them come from
    /// one process to one address as everybody's, and a refused one counts as an answer there.
    pub(crate) fn new(cluster: &Cluster, node: &str) -> Self {
        let mut monitor = cluster.monitor().connect();
        monitor.run(&format!(
            "CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.nodename = '{node}' THEN NEW.health := 0; END IF;
                RETURN NEW;
            END $$"
        ));
        monitor.run(
            "CREATE TRIGGER cut_off BEFORE UPDATE ON pgautofailover.node FOR EACH ROW EXECUTE FUNCTION cut_off()",
        );
        let keepers = keepers(cluster, node);
        assert!(!keepers.is_empty(), "{node} has no keeper");
        signal("STOP", &keepers);
        Self { keepers, monitor }
    }
}

impl Drop for CutOff {
    /// The keeper hears what became of its node, and stops the server.
    fn drop(&mut self) {
        self.monitor.run("DROP FUNCTION cut_off() CASCADE");
        signal("CONT", &self.keepers);
    }
}

/// The processes of pg_autoctl that belong to a node, without its server's.
fn keepers(cluster: &Cluster, node: &str) -> Vec<String> {
    let cluster_mark = format!("HALYARD_CLUSTER_PROCESS={}", cluster.dir().display());
    let node_mark = format!("HALYARD_CLUSTER_SERVICE={node}");
    let of_the_node = |pid: &String| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |mark: &str| {
            environment
                .split(|byte| *byte == 0)
                .any(|one| one == mark.as_bytes())
        };
        program.is_ok_and(|path| path.ends_with("pg_autoctl")) && has(&cluster_mark) && has(&node_mark)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(of_the_node).collect()
}

fn signal(name: &str, pids: &[String]) {
    let status = Command::new("/bin/kill")
        .arg(format!("-{name}"))
        .args(pids)
        .status()
        .unwrap();
    assert!(status.success(), "pg_autoctl does not take SIG{name}");
}
