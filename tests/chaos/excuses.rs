//! Which fault explains which error. Pure: no clock, no database.
//!
//! A fault takes something away, each error can only come of some of that, and an error that nothing explains which is the
//! matter at its time is a violation: a replica that was killed is no reason to leave the outcome of a write unknown.

use std::time::Duration;

use crate::schedule::{Fault, Round, To, Who};

/// How long `failover.hold` of the proxy is: who is told 57P03 has waited as long.
pub(crate) const HOLD: Duration = Duration::from_secs(60);
/// `pool.wait_timeout`: who is told 53300 has waited as long.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Clocks and timers are not exact.
const TOLERANCE: Duration = Duration::from_millis(500);
/// Who has transaction blocks on standbys. Everybody else has them on the primary.
const READS_IN_BLOCKS: &str = "bank's audit";
/// Who has nothing on standbys: they write, or are at `SERIALIZABLE`.
const ON_THE_PRIMARY: [&str; 3] = ["ledger", "bank", "lists"];

/// What a fault takes from clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The primary, or the way to it: whatever is under way there.
    Primary,
    /// The primary moves while something else is broken: who waits for it may wait for too long, and the engine has the new one
    /// do without its standbys.
    Move,
    /// A standby, or the way to it: the reads that are under way there.
    Standby,
    /// A standby that commits wait for: the engine has the primary do without it.
    Backup,
    /// A standby's replay: it is late, and then in a hurry.
    Replay,
}

/// When an error may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excuse {
    /// At any time: the database's own answer to transactions that get in each other's way.
    Always,
    /// While one of these is lost. None of them: never.
    While(&'static [Loss]),
}

/// With a primary go its clients, and its standbys are started anew to follow another.
const ALL: &[Loss] = &[Loss::Primary, Loss::Standby, Loss::Backup, Loss::Replay];

/// What a fault takes away in the round in which it comes, until the cluster is whole again.
pub(crate) fn losses(fault: Fault, round: &Round) -> &'static [Loss] {
    match fault {
        Fault::KillPostgres(who)
        | Fault::KillNode(who)
        | Fault::Freeze(who)
        | Fault::Hiccup(who)
        | Fault::Restart(who) => match who {
            Who::Backup(_) if !moves(round) => &[Loss::Standby, Loss::Backup, Loss::Replay],
            // It may have become the primary.
            Who::Primary | Who::Backup(_) => ALL,
            Who::Replica(_) => &[Loss::Standby, Loss::Replay],
        },
        Fault::Cut(to) | Fault::BlackHole(to, _) => match to {
            To::Monitor => &[],
            To::Node(Who::Backup(_)) if !moves(round) => &[Loss::Standby],
            // The node itself, and whoever follows it, notice nothing.
            To::Node(Who::Primary) if !moves(round) => &[Loss::Primary],
            To::Node(Who::Primary | Who::Backup(_)) => ALL,
            To::Node(Who::Replica(_)) => &[Loss::Standby],
        },
        Fault::KillMonitor => &[],
        Fault::Delay(..) | Fault::PauseReplay(_) => &[Loss::Replay],
        Fault::FillDisk => &[Loss::Standby, Loss::Replay],
        Fault::LoseStandbys => &[Loss::Standby, Loss::Backup, Loss::Replay],
        Fault::KillEverything => ALL,
        Fault::Switchover if !round.breaks() => &[],
        // An order that was under way to the monitor may be heard when nobody is held for it any more.
        Fault::Switchover if has(round, is_to_monitor) => {
            &[Loss::Primary, Loss::Move, Loss::Standby, Loss::Replay]
        }
        Fault::Switchover => &[Loss::Move],
    }
}

fn has(round: &Round, wanted: impl Fn(Fault) -> bool) -> bool {
    round.faults.iter().any(|planned| wanted(planned.fault))
}

/// Whether a node that was a backup may be the primary before the round is over.
fn moves(round: &Round) -> bool {
    has(round, |fault| fault == Fault::Switchover)
}

fn is_to_monitor(fault: Fault) -> bool {
    matches!(fault, Fault::Cut(To::Monitor) | Fault::BlackHole(To::Monitor, _))
}

/// The failure table and the limits of `docs/ARCHITECTURE.md`, from the client's side. pgbench shows no messages of what it
/// knows by its SQLSTATE.
pub(crate) fn excuse(who: &str, sqlstate: &str, message: &str, waited: Duration) -> Excuse {
    let says = |words| message.is_empty() || message == words;
    let nodes: &[Loss] = match ON_THE_PRIMARY.contains(&who) {
        true => &[Loss::Primary],
        false => &[Loss::Primary, Loss::Standby],
    };
    Excuse::While(match sqlstate {
        "40001" if message.starts_with("could not serialize access") => return Excuse::Always,
        // Transactions of the lists append in any order.
        "40P01" if who == "lists" => return Excuse::Always,
        // A standby's replay goes over whoever reads what was vacuumed, where hot_standby_feedback was interrupted.
        "40001" if message.starts_with("canceling statement due to conflict with recovery") => {
            &[Loss::Standby, Loss::Replay]
        }
        // A node that becomes wait_primary has pg_autoctl cancel who waits for a standby, by what pg_stat_activity said a moment
        // ago: whoever has been let go meanwhile is hit in the statement behind.
        "57014" if says("canceling statement due to user request") => &[Loss::Backup, Loss::Move],
        // Between two statements of a block there is none to cancel: replay ends the connection.
        "40001" if who == READS_IN_BLOCKS => &[Loss::Primary, Loss::Standby, Loss::Replay],
        "40001" | "08007" => &[Loss::Primary],
        "57P01" if says("the node was lost in the middle of the answer") => nodes,
        "57P02" if says("the node was lost each time the statement ran") => nodes,
        "57P03" if waited + TOLERANCE >= HOLD => &[Loss::Primary, Loss::Move],
        "53300" if waited + TOLERANCE >= WAIT_TIMEOUT => nodes,
        _ => &[],
    })
}
