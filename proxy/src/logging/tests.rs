use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::config::{Runtime, Secret};

/// Where a test's log lines go.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while it is held").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic while it is held").clone())
            .expect("log lines are UTF-8")
    }
}

fn general(log_format: LogFormat, log_level: &str) -> General {
    General {
        workers: 1,
        runtime: Runtime::PerCore,
        log_format,
        log_level: log_level.to_owned(),
        drain_timeout: Duration::from_secs(1),
        control_socket: None,
        state_file: None,
        zone: None,
    }
}

/// What is logged while `work` runs on this thread.
fn logged(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let filter = filter(&general(format, level), None).expect("a filter");
    let subscriber = subscriber(format, filter, move || writer.clone(), false);
    tracing::subscriber::with_default(subscriber, work);
    lines.text()
}

#[test]
fn an_event_is_one_line_in_both_forms_whatever_it_holds() {
    let event = || tracing::info!(node = "a\nb", "went\naway");
    let text = logged(LogFormat::Text, "info", event);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains(" INFO ") && text.contains("went\\naway") && text.ends_with('\n'),
        "{text}"
    );
    let json = logged(LogFormat::Json, "info", event);
    assert_eq!(json.lines().count(), 1, "{json}");
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&value["message"], &value["node"], &value["level"]),
        (&"went\naway".into(), &"a\nb".into(), &"INFO".into())
    );
}

#[test]
fn the_level_filters_by_module() {
    let events = || {
        tracing::debug!(target: "halyard::pool", "pool");
        tracing::debug!(target: "halyard::relay", "relay");
        tracing::warn!(target: "halyard::relay", "loud");
    };
    let text = logged(LogFormat::Text, "info,halyard::pool=debug", events);
    assert!(
        text.contains("pool") && text.contains("loud") && !text.contains(": relay"),
        "{text}"
    );
}

#[test]
fn the_environment_may_set_the_level_for_one_run() {
    let general = general(LogFormat::Text, "a=b=c");
    assert!(filter(&general, Some("debug".to_owned())).is_ok());
    for (variable, origin) in [
        (None, "general.log_level"),
        (Some("x=y=z"), "RUST_LOG"),
        (Some(""), "general.log_level"),
    ] {
        let error = filter(&general, variable.map(str::to_owned))
            .expect_err("no filter")
            .to_string();
        assert!(
            error.starts_with(&format!("{origin} is no log filter")),
            "{error}"
        );
    }
}

#[test]
fn a_secret_is_not_logged() {
    let text = logged(
        LogFormat::Json,
        "info",
        || tracing::info!(password = ?Secret::new("hunter2"), "user"),
    );
    assert!(text.contains("Secret(…)") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_panic_is_one_event() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(log_panic));
    let text = logged(LogFormat::Json, "error", || {
        let _ = std::panic::catch_unwind(|| panic!("the ledger owes {}", 7));
    });
    std::panic::set_hook(before);
    let value: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    let message = value["message"].as_str().expect("a message");
    assert!(message.contains("the ledger owes 7"), "{message}");
    assert!(
        value["location"]
            .as_str()
            .expect("a place")
            .contains("logging/tests.rs:"),
        "{value}"
    );
}
