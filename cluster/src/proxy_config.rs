//! `halyard.toml`: the proxy's configuration for this cluster. Pure.
//!
//! Only what is the cluster's own is written; for the rest the proxy's defaults stand. The settings' meaning is
//! in the reference `config.toml`.

use crate::layout::{HOST, Layout, MONITOR_DATABASE, Service};
use crate::record::Record;

/// The file's text. It holds passwords: its mode is 0600.
pub(crate) fn render(layout: &Layout, record: &Record) -> String {
    let mut text = String::from(
        "# Written by `halyard cluster up` for the cluster in this folder, and again whenever it starts the proxy.\n\
         # Every setting and its default: config.toml in the source.\n",
    );
    let mut table = |head: &str, settings: &[(&str, Value<'_>)]| {
        text.push_str(&format!("\n{head}\n"));
        for (name, value) in settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
    };
    let (proxy, users) = (&record.proxy, &record.users);
    let control = layout.control_socket();
    let control = control.to_string_lossy();
    let state = layout.proxy_state();
    let state = state.to_string_lossy();
    table(
        "[general]",
        &[
            ("control_socket", Value::Text(&control)),
            ("state_file", Value::Text(&state)),
        ],
    );
    let listen = format!("{HOST}:{}", proxy.port);
    let http = format!("{HOST}:{}", proxy.http_port);
    table(
        "[[listener]]",
        &[("address", Value::Text(&listen)), ("role", Value::Text("auto"))],
    );
    table("[http]", &[("address", Value::Text(&http))]);
    for node in &record.nodes {
        let reads = match node.name.parse() {
            Ok(Service::Ro(_)) => "preferred",
            _ => "fallback",
        };
        table(
            "[[node]]",
            &[
                ("name", Value::Text(&node.name)),
                ("host", Value::Text(&node.host)),
                ("port", Value::Number(node.port)),
                ("reads", Value::Text(reads)),
            ],
        );
    }
    let probe = [
        ("user", Value::Text(&users.monitoring.name)),
        ("password", Value::Text(users.monitoring.password.expose())),
    ];
    let mut health = probe.to_vec();
    health.push(("database", Value::Text(&record.database)));
    table("[health]", &health);
    let mut engine = vec![
        ("kind", Value::Text("pg_auto_failover")),
        ("host", Value::Text(&record.monitor.host)),
        ("port", Value::Number(record.monitor.port)),
        ("database", Value::Text(MONITOR_DATABASE)),
    ];
    engine.extend(probe);
    table("[engine]", &engine);
    for user in [&users.app, &users.readonly] {
        let (name, password) = user.pair();
        table(
            "[[user]]",
            &[
                ("name", Value::Text(name)),
                ("password", Value::Text(password.expose())),
            ],
        );
    }
    text
}

/// A value of the file.
#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Number(u16),
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // A TOML basic string; names, addresses and hexadecimal passwords hold no control characters.
            Value::Text(text) => write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            Value::Number(number) => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests;
