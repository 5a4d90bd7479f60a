//! EXPLAIN ROUTE: where a statement would go now, and why, without running it.

use super::table::{Column, Kind, Table, row};
use crate::app::App;
use crate::classify::{Access, Settings, explain};
use crate::config::ListenerRole;
use crate::error::Report;
use crate::routing::{Route, Sight, Wanted};
use crate::worker;
use halyard_health::SampleNumber;

pub(super) const COLUMNS: &[Column] = &[("key", Kind::Text), ("value", Kind::Text)];

/// What is known of a statement, line by line.
///
/// It is read with the functions of the database that was used first, and with none where no database was used yet:
/// then every function counts as unknown.
///
/// # Errors
/// None yet.
pub(super) fn table(app: &App, sql: &str) -> Result<Table, Report> {
    let groups = app.groups.all();
    let Some(group) = groups.first() else {
        return Err(Report::error(
            crate::error::SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no database was used yet, so that no functions are known",
        ));
    };
    let catalog = group.catalog.load();
    let reading = Settings {
        max_len: app.relay_limits.statement_size_max,
        ..Settings::default()
    };
    let explanation = explain(sql.as_bytes(), &reading, catalog.functions());
    let mut table = Table::new(COLUMNS);
    table.push(row!["database", group.database.as_str()]);
    for (key, value) in explanation.lines() {
        table.push(row![key, value]);
    }
    let access = explanation.access();
    target(app, access, &mut table);
    Ok(table)
}

/// Where it would go now, for a session that has written nothing.
fn target(app: &App, access: Access, table: &mut Table) {
    let routes = app.routing.load();
    let sight = Sight::of(SampleNumber(0));
    let choice = worker::with(|local| routes.route(access, ListenerRole::Auto, &sight, &app.nodes, local));
    let (target, node) = match choice.route {
        Route::Primary(node) => ("primary", Some(node)),
        Route::Standby(node) => ("standby", Some(node)),
        Route::Hold(Wanted::Primary) => ("held until there is a primary", None),
        Route::Hold(Wanted::Standby) => ("held until a standby qualifies", None),
        Route::Hold(Wanted::Resume) => ("held until RESUME", None),
        Route::Refuse(_) => ("refused: no standby qualifies (57P03)", None),
    };
    table.push(row!["target", target]);
    if let Some(node) = node.and_then(|node| app.nodes.get(usize::from(node.0))) {
        table.push(row!["node", node.name.as_str()]);
    }
    let view = app.view.borrow().clone();
    table.push(row!["fence", view.newest_sample.0.to_string()]);
    if access == Access::Read {
        for (reader, weight) in &routes.readers {
            let node = &app.nodes[usize::from(reader.0)];
            let lag = view.node(*reader).and_then(|seen| seen.lag.bytes);
            let lag = lag.map_or_else(
                || "lag unknown".to_owned(),
                |bytes| format!("{bytes} bytes behind"),
            );
            let covered = node.coverage.covered();
            table.push(row![
                "candidate",
                format!("{}: weight {weight}, {lag}, has sample {covered}", node.name)
            ]);
        }
    }
}
