//! Prometheus' text format, for what is a snapshot rather than a count kept by the recorder.
//!
//! A series that is gone (a pool of a node that left) is simply not written any more; a recorder would go on telling
//! its last value.

use std::fmt::{Display, Write};

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// Appends one metric with all its series. Without series nothing is written.
pub(super) fn family<'a, V: Display>(
    out: &mut String,
    kind: Kind,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, V)>,
) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let mut headed = false;
    for (labels, value) in series {
        if !headed {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            headed = true;
        }
        out.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(out, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            escape(out, text);
            out.push('"');
        }
        if !labels.is_empty() {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }
}

/// Appends a label's value; the format escapes exactly these three.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}
