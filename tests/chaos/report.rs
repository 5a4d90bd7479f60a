//! What a run comes to.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::history::{Op, Outcome, Transaction};
use crate::options::Options;
use crate::stage::{Footprint, Stage};

/// A run that is over.
pub(crate) struct Report {
    pub(crate) rounds: usize,
    pub(crate) took: Duration,
    /// A line for each workload.
    pub(crate) lines: Vec<String>,
    /// The proxy without clients, at its largest, and without clients again.
    pub(crate) before: Footprint,
    pub(crate) busiest: Footprint,
    pub(crate) after: Footprint,
    /// The history of the lists.
    pub(crate) history: Vec<Transaction>,
}

impl Report {
    /// Prints everything, keeps logs and history where there was a violation, and says how it went.
    pub(crate) fn tell(&self, options: &Options, stage: &Stage) -> ExitCode {
        let violations = stage.witness.violations();
        let summary = self.summary(options, stage, violations.len());
        println!("\n{summary}");
        if let Some(path) = options.report.as_ref().filter(|_| violations.is_empty()) {
            write(path, &summary);
        }
        if let Some(path) = &options.history {
            std::fs::write(path, self.jepsen()).unwrap();
        }
        if violations.is_empty() {
            return ExitCode::SUCCESS;
        }
        let folder = PathBuf::from(format!(
            "/var/tmp/halyard-chaos-{}-{}",
            options.seed,
            std::process::id()
        ));
        let kept = stage.keep_logs(&folder);
        std::fs::write(kept.join("lists.json"), self.jepsen()).unwrap();
        println!(
            "\nfaults, in seconds since the beginning:\n{}",
            stage.witness.chronicle()
        );
        for violation in &violations {
            println!("VIOLATION {violation}");
        }
        println!(
            "\n{} violations with seed {} and profile {}. The logs and the history of the lists are in {}.\n\
             The same faults again: cargo test --test chaos -- --seed {} --profile {} --minutes {:.1} \
             --resolve-commits {}",
            violations.len(),
            options.seed,
            options.profile,
            kept.display(),
            options.seed,
            options.profile,
            options.lasts.as_secs_f64() / 60.0,
            options.resolve_commits,
        );
        ExitCode::FAILURE
    }

    fn summary(&self, options: &Options, stage: &Stage, violations: usize) -> String {
        let mut text = format!(
            "Commit {}, seed {}, profile `{}`{}, {:.1} minutes, {} rounds of faults: {} violations.\n\n",
            stage.commit,
            options.seed,
            options.profile,
            match options.resolve_commits {
                true => ", `failover.resolve_commits`",
                false => "",
            },
            self.took.as_secs_f64() / 60.0,
            self.rounds,
            if violations == 0 {
                "no".to_owned()
            } else {
                violations.to_string()
            },
        );
        for line in &self.lines {
            let _ = writeln!(text, "- {line}");
        }
        let faults: Vec<_> = stage
            .witness
            .kinds()
            .into_iter()
            .filter(|(kind, _)| !kind.starts_with("until"))
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        let _ = writeln!(text, "- faults: {}", faults.join(", "));
        let _ = writeln!(
            text,
            "- the longest wait for an answer: {:.1} s",
            stage.witness.longest().as_secs_f64()
        );
        let _ = writeln!(
            text,
            "- the proxy without clients, at its largest, and without clients again: {}, {} and {} MiB; {}, {} and {} files",
            self.before.memory_kib / 1024,
            self.busiest.memory_kib / 1024,
            self.after.memory_kib / 1024,
            self.before.files,
            self.busiest.files,
            self.after.files,
        );
        text.push_str("\n| who | was told | times |\n|---|---|---|\n");
        for ((who, what), count) in stage.witness.errors() {
            let _ = writeln!(text, "| {who} | {what} | {count} |");
        }
        text
    }

    /// The history as Jepsen writes it, one operation a line, which Elle reads.
    fn jepsen(&self) -> String {
        let mut lines: Vec<(u64, String)> = Vec::new();
        for transaction in &self.history {
            let outcome = match transaction.outcome {
                Outcome::Committed => "ok",
                Outcome::Failed => "fail",
                Outcome::Unknown => "info",
            };
            for (kind, at) in [("invoke", transaction.began), (outcome, transaction.ended)] {
                let ops: Vec<_> = transaction.ops.iter().map(|op| one(op, kind == "ok")).collect();
                lines.push((
                    at,
                    format!(
                        r#"{{"type":"{kind}","f":"txn","process":{},"time":{},"value":[{}]}}"#,
                        transaction.process,
                        at * 1_000,
                        ops.join(",")
                    ),
                ));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().map(|(_, line)| line + "\n").collect()
    }
}

fn one(op: &Op, answered: bool) -> String {
    match op {
        Op::Append(key, element) => format!(r#"["append",{key},{element}]"#),
        Op::Read(key, list) if answered => format!(r#"["r",{key},{list:?}]"#),
        Op::Read(key, _) => format!(r#"["r",{key},null]"#),
    }
}

/// Puts the summary between the document's marks.
fn write(path: &Path, summary: &str) {
    const MARKS: [&str; 2] = ["<!-- chaos: begin -->\n", "<!-- chaos: end -->"];
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the document has the marks");
    let (_, after) = rest.split_once(MARKS[1]).expect("the document has the marks");
    std::fs::write(path, format!("{before}{}{summary}{}{after}", MARKS[0], MARKS[1])).unwrap();
}
