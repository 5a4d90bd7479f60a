//! How a fault is done to a cluster, and undone.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::excuses::losses;
use crate::schedule::{Fault, Hole, Planned, Round, To, Who};
use crate::stage::Stage;
use crate::support::{Client, LONG_PATIENCE, Link, Silent, guardian};

/// How long a promotion is waited for: the engine needs 25 s, and longer where it has lost its monitor.
const PROMOTION_LIMIT: Duration = Duration::from_secs(90);
/// Until the cluster is whole again. What has to be copied anew is, within it.
const WHOLE_LIMIT: Duration = Duration::from_secs(600);
/// Space for the replica whose disk gets full: its copy and 1 GB of WAL fit in.
const DISK_SIZE: &str = "3g";
const FULL_DISK: &str = "ro3";
/// Replaying late is set on these.
const REPLICAS: [&str; 3] = ["ro1", "ro2", "ro3"];

/// Who is what in a round.
#[derive(Clone, Debug)]
pub(crate) struct Roles {
    primary: String,
    backups: Vec<String>,
}

impl Roles {
    fn name(&self, who: Who) -> String {
        match who {
            Who::Primary => self.primary.clone(),
            Who::Backup(number) => self.backups[number].clone(),
            Who::Replica(number) => REPLICAS[number].to_owned(),
        }
    }
}

/// Moves the third replica to a file system that can be full. Returns whether this machine permits that.
pub(crate) fn give_a_small_disk(stage: &Stage) -> bool {
    let cluster = stage.cluster;
    let home = cluster.dir().join(FULL_DISK);
    let beside = cluster.dir().join("moved");
    cluster.stop(FULL_DISK);
    let shell = r#"set -e
        owner=$(stat -c %u:%g "$1"); mode=$(stat -c %a "$1")
        mkdir "$2"; mount -t tmpfs -o "size=$3" halyard-chaos "$2"
        chown "$owner" "$2"; chmod "$mode" "$2"
        cp -a "$1/." "$2"; mount --move "$2" "$1" || mount --bind "$2" "$1""#;
    let done = Command::new("/bin/sh")
        .args(["-c", shell, "sh"])
        .args([&home, &beside])
        .arg(DISK_SIZE)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // Whatever was mounted goes with the cluster.
    guardian::note(&format!("mount {}", home.display()));
    guardian::note(&format!("mount {}", beside.display()));
    cluster.start(FULL_DISK);
    done.success()
}

/// Does all that a round wants, and returns when the cluster is whole again, or that it does not get so.
pub(crate) fn carry_out(stage: &Stage, round: &Round) -> bool {
    let roles = roles(stage);
    thread::scope(|scope| {
        for planned in &round.faults {
            let roles = &roles;
            scope.spawn(move || {
                thread::sleep(planned.after);
                let words = format!("{} ({})", planned.fault, of(planned.fault, roles));
                let number = stage.witness.begins(words.clone(), losses(planned.fault, round));
                stage
                    .witness
                    .attempt(&words, || inflict(stage, roles, planned, round.breaks()));
                stage.witness.ended(number);
            });
        }
    });
    let number = stage.witness.begins("until the cluster is whole".to_owned(), &[]);
    let whole = make_whole(stage);
    // Where it is not, what is missing goes on missing.
    if whole {
        stage.witness.ended(number);
        stage.witness.made_whole();
    }
    whole
}

fn roles(stage: &Stage) -> Roles {
    let primary = stage.cluster.primary().name.clone();
    let nodes = stage.cluster.nodes().iter().map(|node| node.name.clone());
    let backups = nodes
        .filter(|name| name.starts_with("node") && *name != primary)
        .collect();
    Roles { primary, backups }
}

/// The node's name where the fault names it by its role.
fn of(fault: Fault, roles: &Roles) -> String {
    match fault {
        Fault::KillPostgres(who)
        | Fault::KillNode(who)
        | Fault::Freeze(who)
        | Fault::Hiccup(who)
        | Fault::Restart(who)
        | Fault::PauseReplay(who)
        | Fault::Cut(To::Node(who))
        | Fault::BlackHole(To::Node(who), _) => roles.name(who),
        _ => format!("{} is the primary", roles.primary),
    }
}

fn inflict(stage: &Stage, roles: &Roles, planned: &Planned, in_trouble: bool) {
    let cluster = stage.cluster;
    let wait = || thread::sleep(planned.lasts);
    match planned.fault {
        Fault::KillPostgres(who) => kill_postmaster(stage, &roles.name(who)),
        Fault::KillNode(who) => {
            cluster.kill(&roles.name(who));
            await_promotion(stage, roles, who);
            wait();
        }
        Fault::Freeze(who) => {
            cluster.freeze(&roles.name(who));
            await_promotion(stage, roles, who);
            wait();
            cluster.thaw(&roles.name(who));
        }
        Fault::Hiccup(who) => {
            cluster.freeze(&roles.name(who));
            wait();
            cluster.thaw(&roles.name(who));
        }
        Fault::Restart(who) => {
            cluster.stop(&roles.name(who));
            wait();
        }
        Fault::Cut(to) => {
            link(stage, roles, to).cut();
            wait();
            link(stage, roles, to).mend();
        }
        Fault::BlackHole(to, hole) => {
            link(stage, roles, to).fall_silent_for(match hole {
                Hole::Requests => Silent::Requests,
                Hole::Answers => Silent::Answers,
                Hole::Both => Silent::Both,
            });
            wait();
            link(stage, roles, to).mend();
        }
        Fault::KillMonitor => {
            cluster.kill("monitor");
            wait();
        }
        Fault::Delay(replica, ms) => {
            let change = format!("SET recovery_min_apply_delay = {ms}");
            delay_replay(stage, REPLICAS[replica], &change);
            wait();
        }
        Fault::PauseReplay(who) => {
            told(stage, &roles.name(who), "SELECT pg_wal_replay_pause()");
            wait();
            told(stage, &roles.name(who), "SELECT pg_wal_replay_resume()");
        }
        Fault::FillDisk => {
            let filler = fill_disk(stage);
            wait();
            drop(std::fs::remove_file(filler));
        }
        Fault::LoseStandbys => {
            let lost = roles.backups.iter().map(String::as_str).chain(REPLICAS);
            lost.for_each(|name| cluster.kill(name));
            wait();
        }
        Fault::KillEverything => {
            cluster.kill("monitor");
            cluster.nodes().iter().for_each(|node| cluster.kill(&node.name));
            wait();
        }
        Fault::Switchover => switch_over(stage, in_trouble),
    }
}

/// Where something else is broken it may be refused: nobody takes harm by that.
fn switch_over(stage: &Stage, in_trouble: bool) {
    let mut console = stage.console();
    let answer = console.try_send(&crate::support::message::query("SWITCHOVER"));
    let told = answer
        .and_then(|()| console.try_answer())
        .map(|answer| answer.error);
    match told {
        Ok(None) => {}
        Ok(Some(error)) => {
            let words = format!("the switchover was refused: {error}");
            if in_trouble {
                stage.witness.say(&format!("        {words}"));
            } else {
                stage.witness.violation(&words);
            }
        }
        Err(error) => stage
            .witness
            .violation(&format!("the console did not answer: {error}")),
    }
}

fn link<'s>(stage: &'s Stage, roles: &Roles, to: To) -> &'s Link {
    match to {
        To::Monitor => &stage.monitor_link,
        To::Node(who) => &stage.links[&roles.name(who)],
    }
}

/// SIGKILL to the first process alone: its children find out, and end.
fn kill_postmaster(stage: &Stage, name: &str) {
    let data = stage.cluster.dir().join(name).join("data");
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else {
        return stage.witness.say(&format!("        {name} does not run"));
    };
    let pid = text.lines().next().unwrap_or_default().trim().to_owned();
    let lives_there = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    if lives_there {
        let killed = Command::new("/bin/kill").args(["-9", &pid]).status().unwrap();
        assert!(killed.success(), "kill -9 {pid}");
    }
}

/// Where the primary was taken away: until another one takes writes.
fn await_promotion(stage: &Stage, roles: &Roles, who: Who) {
    if who != Who::Primary {
        return;
    }
    let deadline = Instant::now() + PROMOTION_LIMIT;
    let backups = || {
        stage
            .cluster
            .nodes()
            .iter()
            .filter(|node| roles.backups.contains(&node.name))
    };
    while !backups().any(|node| stage.cluster.is_writable(node)) {
        if Instant::now() >= deadline {
            return stage
                .witness
                .violation(&format!("nobody was promoted within {PROMOTION_LIMIT:?}"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Asks a node as its superuser. None where it does not answer: another fault of the round may have it.
fn told(stage: &Stage, name: &str, sql: &str) -> Option<()> {
    let node = stage.cluster.node(name);
    let mut client: Client = stage.cluster.superuser(node).try_connect(&[]).ok()?;
    client.try_send(&crate::support::message::query(sql)).ok()?;
    let answer = client.try_answer().ok()?;
    answer.error.is_none().then_some(())
}

fn delay_replay(stage: &Stage, name: &str, change: &str) -> Option<()> {
    told(stage, name, &format!("ALTER SYSTEM {change}"))?;
    told(stage, name, "SELECT pg_reload_conf()")
}

/// Writes until there is no space left. Returns the file.
fn fill_disk(stage: &Stage) -> PathBuf {
    let path = stage.cluster.dir().join(FULL_DISK).join("filler");
    let zeros = vec![0; 1 << 20];
    let mut file = File::create(&path).unwrap();
    while file.write_all(&zeros).is_ok() {}
    // What is left is less than a MB: byte by byte of a page.
    while file.write_all(&zeros[..4_096]).is_ok() {}
    path
}

/// Mends the links, starts what is down, and waits until everything follows one primary.
fn make_whole(stage: &Stage) -> bool {
    let deadline = Instant::now() + WHOLE_LIMIT;
    stage.links.values().for_each(Link::mend);
    stage.monitor_link.mend();
    let cluster = stage.cluster;
    let mut said = String::new();
    while Instant::now() < deadline {
        let up = cluster.command(&["up", "--no-proxy"]);
        let as_before = REPLICAS.iter().all(|name| {
            let _ = told(stage, name, "SELECT pg_wal_replay_resume()");
            delay_replay(stage, name, "RESET recovery_min_apply_delay").is_some()
        });
        let status = cluster.command(&["status"]);
        if up.status.success() && as_before && status.status.success() {
            return true;
        }
        said = [&up.stderr, &status.stdout]
            .map(|said| String::from_utf8_lossy(said))
            .concat();
        thread::sleep(Duration::from_millis(500));
    }
    stage.witness.violation(&format!(
        "the cluster is not whole again after {WHOLE_LIMIT:?}: {said}"
    ));
    false
}

/// Until the proxy serves again: a write and a read of a client that has just come, and whoever was there all the time.
pub(crate) fn await_service(stage: &Stage) {
    let whole = Instant::now();
    let marks = stage.witness.marks();
    let mut client = stage.proxy.connect();
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    for (what, sql) in [
        ("write", "INSERT INTO served VALUES (now())"),
        ("read", "SELECT count(*) FROM served"),
    ] {
        let answer = client.query(sql);
        if let Some(error) = answer.error {
            stage
                .witness
                .violation(&format!("a {what} on the whole cluster failed: {error}"));
        }
    }
    client.leave();
    let took = whole.elapsed();
    if took > crate::SERVES_WITHIN {
        stage
            .witness
            .violation(&format!("a write and a read on the whole cluster took {took:?}"));
    }
    let deadline = whole + crate::FLOWS_WITHIN;
    loop {
        let stuck = stage.witness.stuck_since(&marks);
        if stuck.is_empty() && stage.sees_everything() {
            return;
        }
        if Instant::now() >= deadline {
            return stage.witness.violation(&format!(
                "{:?} after the cluster was whole: stuck are {stuck:?}; the proxy sees {}",
                crate::FLOWS_WITHIN,
                stage.seen()
            ));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
