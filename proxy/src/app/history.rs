//! What has happened to the cluster and by operators' hands, as far back as it is kept: SHOW EVENTS.

use std::collections::VecDeque;
use std::time::SystemTime;

use halyard_health::{ClusterView, NodeView};
use parking_lot::Mutex;

/// Most events that are kept; the oldest go first.
const EVENTS_MAX: usize = 1_000;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number; it grows by one with each.
    pub number: u64,
    /// When it was noticed.
    pub at: SystemTime,
    /// What kind of thing: `role`, `reads`, `topology`, `operator`.
    pub kind: &'static str,
    /// The node it is about, if it is about one.
    pub node: Option<String>,
    /// What happened, in a sentence without a full stop.
    pub what: String,
    /// The number of the routing table that followed from it.
    pub epoch: u64,
}

/// The events of the process's life, the newest of them.
#[derive(Debug, Default)]
pub struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    /// The number given last.
    last: u64,
}

impl History {
    /// Takes note of something.
    pub fn note(&self, kind: &'static str, node: Option<&str>, epoch: u64, what: String) {
        let mut kept = self.0.lock();
        if kept.events.len() >= EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.last += 1;
        let number = kept.last;
        kept.events.push_back(Event {
            number,
            at: SystemTime::now(),
            kind,
            node: node.map(str::to_owned),
            what,
            epoch,
        });
    }

    /// Takes note of what differs between two views of the cluster that followed each other.
    pub fn compare(&self, before: &ClusterView, now: &ClusterView) {
        for (was, is) in before.nodes.iter().zip(&now.nodes) {
            let reason = || {
                is.reason
                    .as_ref()
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default()
            };
            if (was.role, was.timeline) != (is.role, is.timeline) && !is_first_sight(was, is) {
                let timeline = is.timeline.map(|timeline| format!(" on timeline {}", timeline.0));
                let what = format!(
                    "{}, which was {}{}{}",
                    is.role,
                    was.role,
                    timeline.unwrap_or_default(),
                    reason()
                );
                self.note("role", Some(&is.name), now.epoch, what);
            }
            if was.serves_reads != is.serves_reads {
                let what = if is.serves_reads {
                    "it serves reads".to_owned()
                } else {
                    format!("it serves no reads{}", reason())
                };
                self.note("reads", Some(&is.name), now.epoch, what);
            }
        }
        if before.topology != now.topology {
            let node = now.primary().map(|primary| &*primary.name);
            self.note("topology", node, now.epoch, now.topology.to_string());
        }
    }

    /// The events that are kept, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().events.iter().cloned().collect()
    }
}

/// Whether a node's timeline became known while its role stayed what it was.
fn is_first_sight(was: &NodeView, is: &NodeView) -> bool {
    was.role == is.role && (was.timeline.is_none() || is.timeline.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let history = History::default();
        for number in 0..EVENTS_MAX + 3 {
            history.note("operator", None, 0, format!("{number}"));
        }
        let events = history.events();
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!((events[0].number, events[0].what.as_str()), (4, "3"));
        assert_eq!(events[EVENTS_MAX - 1].number, EVENTS_MAX as u64 + 3);
    }
}
