//! The figures of all drills of a kind together, and what was promised of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::drill::Round;
use crate::options::{Kind, Options};
use crate::support::commit;

/// What the project promises (issue "Failover without errors").
const DETECTION: [(usize, Duration); 2] = [
    (50, Duration::from_millis(500)),
    (99, Duration::from_millis(1500)),
];
/// What Halyard may add at a planned switchover: of a hundred clients one may have more, and none more than the second.
const SWITCHOVER_STALL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// What it may add when a primary dies, of a hundred clients for all but one.
const FAILOVER_STALL_P99: Duration = Duration::from_millis(500);
/// Clients that can have one statement or one block under way when the primary goes: pgbench's writers and the ledger's.
const IN_FLIGHT_MAX: usize = 16 + 9;

/// All rounds so far.
pub(crate) struct Report {
    circumstances: String,
    profile: String,
    idle: usize,
    tls: bool,
    rounds: BTreeMap<Kind, Vec<Round>>,
}

impl Report {
    /// Of a run that begins now: before it makes the machine busy.
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            circumstances: circumstances(),
            profile: options.profile.clone(),
            idle: options.idle,
            tls: options.tls,
            rounds: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.entry(round.kind).or_default().push(round);
    }

    /// As Markdown.
    pub(crate) fn table(&self) -> String {
        let mut lines: Vec<(&str, Vec<String>)> = Vec::new();
        let mut line = |name, cell: &dyn Fn(&[Round]) -> String| {
            lines.push((name, self.rounds.values().map(|rounds| cell(rounds)).collect()));
        };
        line("drills", &|rounds| rounds.len().to_string());
        line("errors: select-only", &|rounds| errors(rounds, "select-only"));
        line("errors: TPC-B", &|rounds| errors(rounds, "tpcb-like"));
        line("errors: ledger", &|rounds| errors(rounds, "ledger"));
        line("connections that ended", &|rounds| {
            sum(rounds, |round| round.disconnects)
        });
        line("idle clients dropped, or without their state", &|rounds| {
            sum(rounds, |round| round.kept.dropped + round.kept.lost)
        });
        line("acknowledged writes", &|rounds| {
            sum(rounds, |round| round.acknowledged)
        });
        line("of these lost", &|rounds| sum(rounds, |round| round.lost));
        line("written twice", &|rounds| sum(rounds, |round| round.twice));
        line("told to have failed, and there", &|rounds| {
            sum(rounds, |round| round.denied)
        });
        line("told 08007; of these committed", &|rounds| {
            format!(
                "{}; {}",
                sum(rounds, |round| round.unknown.0),
                sum(rounds, |round| round.unknown.1)
            )
        });
        line("noticed after: p50, p99", &|rounds| {
            quantiles(
                rounds.iter().filter_map(|round| round.detection).collect(),
                &[50, 99],
            )
        });
        line("without a writable node: p50, max", &|rounds| {
            quantiles(
                rounds.iter().filter_map(|round| round.engine).collect(),
                &[50, 100],
            )
        });
        line("until a write is answered: p50, max", &|rounds| {
            quantiles(rounds.iter().filter_map(|round| round.gap).collect(), &[50, 100])
        });
        line("added by Halyard: p50, p99, max", &|rounds| {
            quantiles(stalls(rounds), &[50, 99, 100])
        });
        line("statements to a node that was replaced", &|rounds| {
            sum(rounds, |round| round.strays)
        });

        let tls = if self.tls { ", TLS on both legs" } else { "" };
        let mut text = format!(
            "Run of {}. Profile `{}`{tls}, {} idle clients.\n\n|",
            self.circumstances, self.profile, self.idle
        );
        for kind in self.rounds.keys() {
            let _ = write!(text, " | {}", title(*kind));
        }
        text.push_str(" |\n|---|");
        text.push_str(&"---|".repeat(self.rounds.len()));
        for (name, cells) in lines {
            let _ = write!(text, "\n| {name} | {} |", cells.join(" | "));
        }
        text.push('\n');
        text
    }

    /// Puts the table between the document's marks for this profile, in the place of all that stood there. Nothing else
    /// gets in: what the run prints, and what cargo prints before it, is for the terminal.
    ///
    /// # Panics
    /// The document has no such marks.
    pub(crate) fn write(&self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap();
        let tls = if self.tls { " tls" } else { "" };
        let begin = format!("<!-- drills {}{tls}: begin -->\n", self.profile);
        let end = format!("<!-- drills {}{tls}: end -->", self.profile);
        let (before, rest) = text
            .split_once(&begin)
            .expect("the document has this profile's marks");
        let (_, after) = rest
            .split_once(&end)
            .expect("the document has this profile's marks");
        std::fs::write(path, format!("{before}{begin}{}{end}{after}", self.table())).unwrap();
    }

    /// What was promised and did not hold.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for round in self.rounds.values().flatten() {
            let mut none = |what: &str, count: usize| {
                if count > 0 {
                    broken.push(format!("{}: {count} {what}", round.kind));
                }
            };
            none("connections ended", round.disconnects);
            none("idle clients dropped", round.kept.dropped);
            none("idle clients without their statement or setting", round.kept.lost);
            none("acknowledged writes lost", round.lost);
            none("writes twice", round.twice);
            none("writes told to have failed, and there", round.denied);
            if matches!(round.kind, Kind::Primary | Kind::Switchover) {
                none(
                    "rounds without a first answer",
                    usize::from(round.stalls.is_empty()),
                );
            }
            if round.kind == Kind::Primary {
                none(
                    "ends that Halyard did not log",
                    usize::from(round.detection.is_none()),
                );
            }
            none("statements sent to a node that was replaced", round.strays);
            let errors = |who: &str| -> usize {
                let of = round.errors.iter().filter(|((by, _), _)| *by == who);
                of.map(|(_, count)| count).sum()
            };
            none("reads failed", errors("select-only"));
            let writes = errors("tpcb-like") + errors("ledger");
            match round.kind {
                Kind::Switchover | Kind::Replica => none("writes failed", writes),
                Kind::Primary | Kind::SplitBrain | Kind::CutOff => {
                    none(
                        "errors beyond what was in flight",
                        writes.saturating_sub(IN_FLIGHT_MAX),
                    );
                    let known = |state: &str| matches!(state, "40001" | "08007");
                    let strange = round.errors.iter().filter(|((_, what), _)| !known(what)).count();
                    none("kinds of error but 40001 and 08007", strange);
                }
            }
        }
        let killed = self.rounds.get(&Kind::Primary).into_iter().flatten();
        let mut detections: Vec<Duration> = killed.filter_map(|round| round.detection).collect();
        detections.sort();
        for (percent, limit) in DETECTION {
            if let Some(detection) = quantile(&detections, percent).filter(|detection| *detection > limit) {
                broken.push(format!(
                    "{percent} % of the primaries' ends were noticed within {detection:?} only"
                ));
            }
        }
        for (kind, p99, max) in [
            (Kind::Switchover, SWITCHOVER_STALL.0, SWITCHOVER_STALL.1),
            (Kind::Primary, FAILOVER_STALL_P99, Duration::MAX),
        ] {
            let mut stalls = self
                .rounds
                .get(&kind)
                .map(|rounds| stalls(rounds))
                .unwrap_or_default();
            stalls.sort();
            let beyond = |percent, limit| quantile(&stalls, percent).is_some_and(|stall| stall > limit);
            if beyond(99, p99) || beyond(100, max) {
                broken.push(format!("{kind}: Halyard added up to {:?}", stalls.last()));
            }
        }
        broken
    }
}

/// When it is, and how busy the machine was in the last minute.
fn circumstances() -> String {
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%d %H:%M UTC"])
        .output()
        .unwrap();
    let date = String::from_utf8(date.stdout).unwrap();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load = load.split(' ').next().unwrap();
    format!(
        "{}, commit {}, load average before it {load}",
        date.trim(),
        commit()
    )
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Switchover => "planned switchover",
        Kind::Primary => "primary killed",
        Kind::Replica => "replica killed",
        Kind::SplitBrain => "primary frozen, thawed when replaced",
        Kind::CutOff => "primary cut off from the engine, reachable by Halyard",
    }
}

fn sum(rounds: &[Round], of: impl Fn(&Round) -> usize) -> String {
    rounds.iter().map(of).sum::<usize>().to_string()
}

fn errors(rounds: &[Round], who: &str) -> String {
    let mut sums = BTreeMap::<&str, usize>::new();
    for round in rounds {
        for ((_, what), count) in round.errors.iter().filter(|((by, _), _)| *by == who) {
            *sums.entry(what).or_default() += count;
        }
    }
    if sums.is_empty() {
        return "0".to_owned();
    }
    let words: Vec<String> = sums
        .iter()
        .map(|(what, count)| format!("{what}: {count}"))
        .collect();
    words.join(", ")
}

fn stalls(rounds: &[Round]) -> Vec<Duration> {
    rounds
        .iter()
        .flat_map(|round| round.stalls.iter().copied())
        .collect()
}

/// The value that so many of a hundred do not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn quantiles(mut values: Vec<Duration>, percents: &[usize]) -> String {
    values.sort();
    let shown = |percent: &usize| match quantile(&values, *percent) {
        Some(value) if value >= Duration::from_secs(10) => format!("{:.1} s", value.as_secs_f64()),
        Some(value) => format!("{} ms", value.as_millis()),
        None => "–".to_owned(),
    };
    percents.iter().map(shown).collect::<Vec<_>>().join(", ")
}
