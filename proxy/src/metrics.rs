//! What Halyard counts, and how it is told to Prometheus.
//!
//! ```text
//! worker 0 ─ Counters ─┐
//! worker 1 ─ Counters ─┼─ Registry::publish ─▶ recorder ─┐
//! slow path ─ observe_… ──────────────────────▶ recorder ─┼─▶ /metrics
//! Status (one snapshot) ─ gauges::render ─────────────────┤
//! /proc (at a scrape only) ─ process::render ─────────────┘
//! ```
//! The data plane only ever adds to atomics of its own worker. Everything else happens when somebody scrapes, off the
//! data plane's threads, and takes no lock that the data plane takes. Names carry the prefix `halyard_` and base units;
//! every counter and histogram exists, at zero, from the start.

mod counters;
mod exposition;
mod gauges;
mod process;

use std::sync::Arc;
use std::time::Duration;

use crate::routing::Decision;

use metrics::{Counter as Handle, counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

pub use counters::{Counter, Counters};
pub use gauges::render as render_gauges;
pub use process::render as render_process;

const ROUTE_DECISIONS: &str = "halyard_route_decisions_total";
const CHECKOUT_WAIT: &str = "halyard_checkout_wait_seconds";
const HOLD: &str = "halyard_hold_seconds";
const NODE_LOGIN: &str = "halyard_node_login_seconds";
const DETECTION: &str = "halyard_failover_detection_seconds";
const FAILOVER: &str = "halyard_failover_seconds";

/// A histogram: its name, what it tells, and the upper bounds of its buckets in seconds.
type Histogram = (&'static str, &'static str, &'static [f64]);

const HISTOGRAMS: [Histogram; 5] = [
    (
        CHECKOUT_WAIT,
        "Time that clients waited for a connection to a node, where they had to wait.",
        &[
            0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            30.0,
        ],
    ),
    (
        HOLD,
        "Time that statements were held, whether they were given up or not.",
        &[
            0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 45.0, 60.0, 120.0,
        ],
    ),
    (
        NODE_LOGIN,
        "Time from the start of a connection to a node until it was ready for queries.",
        &[
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ],
    ),
    (
        DETECTION,
        "Time from a primary's last answer until it was known that there is none.",
        &[
            0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
        ],
    ),
    (
        FAILOVER,
        "Time without a writable primary, from the loss of one to the sight of the next.",
        &[
            0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 30.0, 45.0, 60.0, 120.0, 300.0,
        ],
    ),
];

/// Makes the process-wide recorder. Call it once, before any [`Registry`] is made. Without it every count goes nowhere,
/// which is what a process without `[http]` wants: nobody would ever drain the histograms.
///
/// # Errors
/// There is a recorder already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let recorder = recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    Ok(handle)
}

fn recorder() -> PrometheusRecorder {
    let with_buckets = |builder: PrometheusBuilder, (name, _, buckets): Histogram| {
        let matcher = Matcher::Full(name.to_owned());
        builder
            .set_buckets_for_metric(matcher, buckets)
            .expect("no histogram is without buckets")
    };
    HISTOGRAMS
        .into_iter()
        .fold(PrometheusBuilder::new(), with_buckets)
        .build_recorder()
}

/// Tells the recorder what everything means, and makes the histograms exist.
fn describe() {
    for (name, help) in counters::FAMILIES {
        describe_counter!(*name, *help);
    }
    describe_counter!(
        ROUTE_DECISIONS,
        "Requests sent to a node, by what they needed, as what the node was chosen, and why."
    );
    for (name, help, _) in HISTOGRAMS {
        describe_histogram!(name, help);
        let _ = histogram!(name);
    }
}

/// The counters of all workers, and the way from them to the recorder.
pub struct Registry {
    workers: Vec<Arc<Counters>>,
    /// One for each of [`Counter::ALL`], in that order.
    handles: Vec<Handle>,
    /// One for each of [`Decision::all`], in that order.
    decisions: Vec<Handle>,
}

impl Registry {
    /// Counters for `workers` threads, all at zero. The recorder must be installed before.
    pub fn new(workers: usize) -> Self {
        let handle = |series: &Counter| counter!(series.name(), series.labels());
        let decision = |decided: Decision| {
            counter!(
                ROUTE_DECISIONS,
                "class" => decided.class.as_str(),
                "target" => decided.target(),
                "reason" => decided.reason.as_str()
            )
        };
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            handles: Counter::ALL.iter().map(handle).collect(),
            decisions: Decision::all().map(decision).collect(),
        }
    }

    /// The counters of one worker, of which it alone should write.
    ///
    /// # Panics
    /// There is no worker `index`: they count from 0.
    pub fn for_worker(&self, index: usize) -> Arc<Counters> {
        Arc::clone(&self.workers[index])
    }

    /// What all workers counted together.
    pub fn sum(&self, counter: Counter) -> u64 {
        self.workers.iter().map(|worker| worker.value(counter)).sum()
    }

    /// How often all workers together decided so.
    pub fn decided(&self, decision: Decision) -> u64 {
        self.workers.iter().map(|worker| worker.decided(decision)).sum()
    }

    /// Hands the sums to the recorder; to be done before each scrape.
    pub fn publish(&self) {
        for (handle, &counter) in self.handles.iter().zip(Counter::ALL) {
            handle.absolute(self.sum(counter));
        }
        for (handle, decision) in self.decisions.iter().zip(Decision::all()) {
            handle.absolute(self.decided(decision));
        }
    }
}

/// A client got a connection to a node after having waited for it.
pub fn observe_checkout_wait(waited: Duration) {
    histogram!(CHECKOUT_WAIT).record(waited);
}

/// A held statement was let go, or given up.
pub fn observe_hold(held: Duration) {
    histogram!(HOLD).record(held);
}

/// A connection to a node became ready for queries.
pub fn observe_node_login(took: Duration) {
    histogram!(NODE_LOGIN).record(took);
}

/// There is no primary any more, so long after the last one's last answer.
pub fn observe_detection(since_last_answer: Duration) {
    histogram!(DETECTION).record(since_last_answer);
}

/// There is a writable primary again.
pub fn observe_failover(without_primary: Duration) {
    histogram!(FAILOVER).record(without_primary);
}

#[cfg(test)]
mod tests;
