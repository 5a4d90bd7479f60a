//! Settings of Halyard's own, `halyard.*`: what they can be, and what a session has said.
//!
//! A server keeps any setting with a dot in its name, with its transactions and savepoints, and the session is asked
//! for it like for every other (see `docs/adr/0009-ask-the-server-what-a-session-holds.md`). So nothing is kept here
//! but the meaning of the values: before a server takes one that means nothing it is refused in PostgreSQL's words, and
//! before it is asked to show one that nobody has set it is given the default.

use super::settings::statements_setting;
use super::turn::{Session, Turn};
use crate::classify::OwnSetting;
use crate::config::{ListenerRole, ReadConsistency, RouteSetting};
use crate::consistency::{CarriedFence, Consistency};
use crate::error::{Report, SqlState};
use crate::pool::exchange;
use crate::relay::Link;
use crate::wire::{HEADER_SIZE, Header, bind_names, frontend, parse_parts};

/// How long a server may take to take a default, or to let a transaction fail.
const TELL_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// PostgreSQL's words for Boolean values (manual, section 20.1.1); any beginning of one that is no other's means the same.
const BOOLEANS: [(&str, bool); 8] = [
    ("on", true),
    ("off", false),
    ("true", true),
    ("false", false),
    ("yes", true),
    ("no", false),
    ("1", true),
    ("0", false),
];

/// How long a client that asks for its fence waits until the primary has told its position.
const FENCE_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// The names behind `halyard.`.
const NAMES: [&str; 4] = ["route", "consistency", "trace", FENCE];
const FENCE: &str = "fence";

/// What a session has said by its settings. What it has not said is decided by its user's policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSettings {
    /// `halyard.route`.
    pub route: Option<RouteSetting>,
    /// `halyard.consistency`.
    pub consistency: Option<ReadConsistency>,
    /// `halyard.trace`.
    pub trace: bool,
    /// `halyard.fence`.
    pub fence: Option<CarriedFence>,
}

impl OwnSettings {
    /// What pairs of names in lower case and values say. A value that means nothing says nothing.
    pub(super) fn of(pairs: &[(String, String)]) -> Self {
        let mut own = Self::default();
        for (name, value) in pairs {
            match name.strip_prefix("halyard.") {
                Some("route") => own.route = choice(&RouteSetting::VALUES, value),
                Some("consistency") => own.consistency = choice(&ReadConsistency::VALUES, value),
                Some("trace") => own.trace = boolean(value) == Some(true),
                Some(FENCE) => own.fence = value.parse().ok(),
                _ => {}
            }
        }
        own
    }
}

/// Whether a setting can have a value; settings that are not Halyard's own can have any.
///
/// # Errors
/// 22023 for a value and 42602 for a name, as PostgreSQL words them.
pub(super) fn check(name: &str, value: &str) -> Result<(), Report> {
    let name = name.to_ascii_lowercase();
    let Some(own) = name.strip_prefix("halyard.") else {
        return Ok(());
    };
    match own {
        "route" => offered(&name, value, &RouteSetting::VALUES),
        "consistency" => offered(&name, value, &ReadConsistency::VALUES),
        FENCE if value.is_empty() => Ok(()),
        FENCE => match value.parse::<CarriedFence>() {
            Ok(_) => Ok(()),
            Err(error) => Err(Report::error(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"{name}\": \"{value}\""),
            )
            .with_detail(format!("It is {error}."))
            .with_hint("Set it to what SHOW halyard.fence said on another connection.")),
        },
        "trace" if boolean(value).is_some() => Ok(()),
        "trace" => Err(Report::error(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("parameter \"{name}\" requires a Boolean value"),
        )),
        _ => Err(Report::error(
            SqlState::INVALID_NAME,
            format!("invalid configuration parameter name \"{name}\""),
        )
        .with_detail("\"halyard\" is a reserved prefix.")),
    }
}

/// A fence of a timeline that was not seen here yet is refused: no node is known to have what it stands for.
///
/// # Errors
/// 55000.
pub(super) fn check_timeline(name: &str, value: &str, consistency: &Consistency) -> Result<(), Report> {
    if !name.eq_ignore_ascii_case("halyard.fence") {
        return Ok(());
    }
    let ahead = value.parse().ok().and_then(|fence| consistency.is_ahead(fence));
    let Some(seen) = ahead else { return Ok(()) };
    Err(Report::error(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the fence \"{value}\" is of a timeline that Halyard has not seen yet"),
    )
    .with_detail(format!("The primary that it knows is on timeline {seen}."))
    .with_hint("Halyard learns of a failover within about a second. Try again."))
}

fn offered<T: Copy>(name: &str, value: &str, values: &[(&str, T)]) -> Result<(), Report> {
    if choice(values, value).is_some() {
        return Ok(());
    }
    let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
    Err(Report::error(
        SqlState::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{name}\": \"{value}\""),
    )
    .with_hint(format!("Available values: {}.", names.join(", "))))
}

fn choice<T: Copy>(values: &[(&str, T)], value: &str) -> Option<T> {
    values
        .iter()
        .find_map(|(name, meant)| name.eq_ignore_ascii_case(value).then_some(*meant))
}

fn boolean(value: &str) -> Option<bool> {
    let begins = |word: &str| {
        word.get(..value.len())
            .is_some_and(|beginning| beginning.eq_ignore_ascii_case(value))
    };
    let mut meant = BOOLEANS
        .iter()
        .filter(|(word, _)| !value.is_empty() && begins(word))
        .map(|(_, meant)| *meant);
    let first = meant.next()?;
    meant.all(|other| other == first).then_some(first)
}

impl Session {
    /// Where the session's statements go, as a port's role: a port with a role of its own is not argued with, and a
    /// statement that says where it wants to go is looked at by itself.
    #[inline]
    pub(super) fn role(&self, hinted: bool) -> ListenerRole {
        if self.port != ListenerRole::Auto || hinted {
            return self.port;
        }
        let own = self.memory.settings.own();
        own.route.unwrap_or(self.group.policy.route).as_port()
    }

    /// What the session's reads see at least.
    #[inline]
    pub(super) fn consistency(&self) -> ReadConsistency {
        let own = self.memory.settings.own();
        own.consistency.unwrap_or(self.group.policy.consistency)
    }

    /// Looks at what a request says of Halyard's own settings before it is sent: a value that means nothing is refused,
    /// and what it may want to see is there to be seen. `None` where it can be sent.
    pub(super) async fn see_to_own_settings(&mut self) -> Option<Turn> {
        let demand = self.demand?;
        let bytes = &self.client.input.unparsed()[..demand.bytes];
        let asks_for_fence = match self.check_values(bytes) {
            Ok(asks) => asks,
            Err(report) => return Some(self.refuse_in_place(report).await),
        };
        self.memory.own_settings_seen_to = true;
        let mut missing = self.missing_defaults();
        if asks_for_fence {
            let Some(fence) = self.app.consistency.carry(FENCE_LIMIT).await else {
                return Some(self.refuse_in_place(no_fence()).await);
            };
            missing.retain(|(name, _)| !name.ends_with(FENCE));
            missing.push((format!("halyard.{FENCE}"), Some(fence.to_string())));
        }
        if missing.is_empty() {
            return None;
        }
        let sql = statements_setting(&missing, self.link.as_ref().is_some_and(Link::in_block));
        let with_defaults = self.memory.settings.with(missing);
        match &mut self.link {
            None => self.adopt_settings(with_defaults),
            // Inside a batch that goes on nothing can be asked.
            Some(link) if link.backend.ledger.batch_open() => {}
            Some(link) => {
                let in_block = link.in_block();
                // In a failed block nothing can be set, and nothing is shown either.
                if let Ok(()) = exchange::ask(&mut link.backend, &sql, TELL_LIMIT).await
                    && !in_block
                {
                    self.adopt_settings(with_defaults);
                    if let Some(link) = &mut self.link {
                        link.backend.settings = std::sync::Arc::clone(&self.memory.settings);
                    }
                }
            }
        }
        None
    }

    /// Looks at the values that a request gives to settings of Halyard's own; whether it may want to be told its session's
    /// fence.
    fn check_values(&self, bytes: &[u8]) -> Result<bool, Report> {
        let mut asks_for_fence = false;
        let mut at = 0;
        while let Ok(Some(header)) = Header::parse(bytes.get(at..).unwrap_or_default()) {
            let Some(body) = bytes.get(at + HEADER_SIZE..at + header.total()) else {
                break;
            };
            at += header.total();
            let text = match header.kind {
                frontend::QUERY => Some(body.strip_suffix(&[0]).unwrap_or(body)),
                frontend::PARSE => parse_parts(body).map(|parts| &body[parts.text]),
                frontend::BIND => bind_names(body).and_then(|names| {
                    let statements = &self.memory.statements;
                    let statement = match &body[names.statement] {
                        b"" => statements.unnamed.as_ref(),
                        name => statements.named(name),
                    };
                    statement.map(|statement| statement.text())
                }),
                _ => None,
            };
            let standard = self.reading.standard_conforming_strings;
            let Some(text) = text else { continue };
            let mut named = times_named(text);
            for own in OwnSetting::all(text, standard) {
                let name = format!("halyard.{}", String::from_utf8_lossy(own.name));
                let value = String::from_utf8_lossy(own.value);
                check(&name, &value)?;
                check_timeline(&name, &value, &self.app.consistency)?;
                if own.name.eq_ignore_ascii_case(FENCE.as_bytes()) {
                    named = named.saturating_sub(1);
                }
            }
            asks_for_fence |= named > 0;
        }
        Ok(asks_for_fence)
    }

    /// Has the session's reads see what its settings say that they have to.
    pub(super) fn heed_fence(&mut self) {
        if let Some(fence) = self.memory.settings.own().fence {
            let fence = self.app.consistency.take(fence);
            self.see_at_least(fence);
        }
    }

    /// Tells the client of values that mean nothing and that nobody could look at before they were set.
    pub(super) fn warn_of_own_settings(&mut self, set: &[(String, Option<String>)]) {
        for (name, value) in set {
            let value = value.as_deref().unwrap_or_default();
            if let Some(report) = (!value.is_empty()).then(|| check(name, value).err()).flatten() {
                let warning = Report::warning(report.sqlstate, report.message);
                let warning = warning.with_detail("It counts as if it had not been set.");
                warning.encode(self.client.out.end());
            }
        }
    }

    /// Settings of Halyard's own that the session has not set, with the values that hold for it.
    fn missing_defaults(&self) -> Vec<(String, Option<String>)> {
        let policy = self.group.policy;
        let values = [
            policy.route.to_string(),
            policy.consistency.to_string(),
            "off".to_owned(),
            String::new(),
        ];
        let unset = |name: &str| self.memory.settings.value(name).is_none_or(str::is_empty);
        let named = NAMES.map(|name| format!("halyard.{name}"));
        named
            .into_iter()
            .zip(values)
            .filter(|(name, _)| unset(name))
            .map(|(name, value)| (name, Some(value)))
            .collect()
    }

    /// Has a request fail for the value of a setting: with no backend by itself, else with the transaction that it is
    /// in, as if the server had refused the value.
    pub(super) async fn refuse_in_place(&mut self, report: Report) -> Turn {
        let Some(link) = &mut self.link else {
            self.fail_demand(report);
            return Turn::Again;
        };
        if link.backend.ledger.batch_open() {
            return self.give_up_link(report);
        }
        if link.backend.ledger.status() == b'T' {
            let failing = "SELECT pg_catalog.set_config('bytea_output','halyard',true)";
            if exchange::ask(&mut link.backend, failing, TELL_LIMIT)
                .await
                .is_ok()
                || link.backend.ledger.status() != b'E'
            {
                return self.give_up_link(report);
            }
        }
        let status = link.backend.ledger.status();
        self.fail_demand_beside(report, status);
        Turn::Again
    }
}

/// How often a text names the fence; to set it is one of those times.
fn times_named(text: &[u8]) -> usize {
    let is_name = |part: &&[u8]| part.eq_ignore_ascii_case(FENCE.as_bytes());
    text.windows(FENCE.len()).filter(is_name).count()
}

fn no_fence() -> Report {
    Report::error(
        SqlState::CANNOT_CONNECT_NOW,
        "the primary does not tell its position, so there is no fence to carry",
    )
    .with_detail(format!("Halyard has waited for {} s.", FENCE_LIMIT.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, value: &str) -> String {
        match check(name, value) {
            Ok(()) => String::new(),
            Err(report) => format!(
                "{} {}{}",
                report.sqlstate,
                report.message,
                report.hint.map(|hint| format!(" {hint}")).unwrap_or_default()
            ),
        }
    }

    #[test]
    fn values_that_mean_nothing_are_refused_in_postgresqls_words() {
        for (name, value) in [
            ("halyard.route", "Replica"),
            ("Halyard.Consistency", "eventual"),
            ("halyard.trace", "t"),
            ("halyard.trace", "OF"),
            ("app.route", "anything"),
        ] {
            assert_eq!(told(name, value), "", "{name} = {value}");
        }
        assert_eq!(
            told("halyard.route", "standby"),
            "22023 invalid value for parameter \"halyard.route\": \"standby\" Available values: auto, primary, replica."
        );
        for value in ["o", "", "maybe", "2"] {
            assert_eq!(
                told("halyard.trace", value),
                "22023 parameter \"halyard.trace\" requires a Boolean value"
            );
        }
        assert_eq!(
            told("halyard.rout", "auto"),
            "42602 invalid configuration parameter name \"halyard.rout\""
        );
    }

    #[test]
    fn a_value_that_means_nothing_says_nothing() {
        let own = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            OwnSettings::of(&pairs)
        };
        assert_eq!(
            own(&[("halyard.route", ""), ("halyard.trace", "x")]),
            OwnSettings::default()
        );
        assert_eq!(
            own(&[
                ("halyard.route", "PRIMARY"),
                ("halyard.trace", "yes"),
                ("halyard.consistency", "global")
            ]),
            OwnSettings {
                route: Some(RouteSetting::Primary),
                consistency: Some(ReadConsistency::Global),
                trace: true,
                fence: None,
            }
        );
    }
}
