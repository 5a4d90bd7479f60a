//! The oracle: every statement that is classed as a read is run on a hot standby, and has to be one.
//!
//! Clients (psql, pgbench, drivers and ORMs, in both protocols) speak to a [`middle`]man, who puts each statement on [`trial`] before its client hears the answer: on the
//! primary in a block of its own, looking at what the session holds before and after (a transaction ID, temporary
//! objects, settings, prepared statements, cursors, channels, locks), and on the standby as soon as that has replayed
//! everything. A read that a standby refuses, that leaves anything anywhere, or that answers otherwise than on the
//! primary, where the primary gives the same answer twice, fails the test. Queries that are *not* classed as reads are
//! run on the standby too: those that could have been read there are counted by reason.
//!
//! `HALYARD_ORACLE=full` takes the whole of PostgreSQL's regression suite (`make oracle`); `HALYARD_ORACLE_FILES` names
//! single files of it. Where Debian's archive has no sources the suite is left out, and that is said.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the differential tests use the rest")]
#[path = "../differential/server.rs"]
mod server;

mod corpus;
mod generated;
mod middle;
mod report;
mod scanner;
mod stage;
mod statement;
mod trial;

use std::sync::Arc;
use std::time::Instant;

use stage::Stage;

#[test]
fn what_is_classed_as_a_read_is_one() {
    let full = std::env::var("HALYARD_ORACLE").is_ok_and(|value| value == "full");
    let stage = Arc::new(Stage::start());
    let port = middle::serve(&stage);
    let mut clean = true;
    let mut done = |corpus: &str| {
        let report = std::mem::take(&mut *stage.report.lock().unwrap());
        eprintln!("\n== {corpus}\n{}", report.in_words());
        clean &= report.is_clean();
    };
    see_it_fail(&stage, port);
    generated::run(&stage, port);
    done("generated queries");
    corpus::pgbench(port);
    done("pgbench");
    corpus::drivers(&stage, port);
    done("drivers and ORMs");
    match corpus::Inputs::fetch() {
        Ok(inputs) => {
            regression(&stage, &inputs.suite(full), port);
            done("PostgreSQL's regression suite");
        }
        Err(reason) => {
            eprintln!("oracle: without PostgreSQL's regression suite, which cannot be had: {reason}");
        }
    }
    assert!(clean, "a read is none: see above");
}

/// Reads that are none, by an operator's mistake, are found out: what writes, what answers for its node, what a session
/// keeps.
fn see_it_fail(stage: &Stage, port: u16) {
    stage.allow(&[
        "nextval",
        "pg_is_in_recovery",
        "txid_current",
        "take_lock",
        "needs_primary",
    ]);
    let direct = stage.primary.superuser("postgres");
    direct.connect().run(
        "CREATE SEQUENCE wrong; SELECT nextval('wrong');
         CREATE FUNCTION take_lock() RETURNS void LANGUAGE sql VOLATILE AS 'SELECT pg_advisory_lock(1)';
         CREATE FUNCTION needs_primary() RETURNS int LANGUAGE plpgsql VOLATILE AS
            'BEGIN IF pg_is_in_recovery() THEN RAISE read_only_sql_transaction; END IF; RETURN 1; END'",
    );
    let mut client = support::Address { port, ..direct }.connect();
    for wrong in [
        "SELECT nextval('wrong')",
        "SELECT pg_is_in_recovery()",
        "SELECT txid_current()",
        "SELECT take_lock()",
        "SELECT needs_primary()",
    ] {
        client.run(wrong);
        let report = std::mem::take(&mut *stage.report.lock().unwrap());
        assert!(
            report.violations() > 0,
            "{wrong} passes for a read:\n{}",
            report.in_words()
        );
    }
    stage.allow(&[]);
}

/// The server's rules where tokens end are Halyard's: a quote read otherwise would turn data into keywords.
#[test]
fn tokens_end_where_the_servers_scanner_ends_them() {
    match corpus::Inputs::fetch() {
        Ok(inputs) => scanner::compare(&inputs.scanner(), &inputs.sources()),
        Err(reason) => {
            eprintln!("oracle: without PostgreSQL's scanner, which cannot be had: {reason}");
        }
    }
}

fn regression(stage: &Stage, suite: &corpus::Suite, port: u16) {
    let mut superuser = stage.primary.superuser("postgres").connect();
    for statement in corpus::MAKE_DATABASE {
        superuser.run(statement);
    }
    let only = std::env::var("HALYARD_ORACLE_FILES").ok();
    let chosen = |file: &&String| {
        only.as_ref()
            .is_none_or(|only| only.split(',').any(|name| name == *file))
    };
    for file in suite.files.iter().filter(chosen) {
        let began = Instant::now();
        suite.run(file, port);
        eprintln!("oracle: {file} in {:.1} s", began.elapsed().as_secs_f64());
    }
}
