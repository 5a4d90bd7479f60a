//! What a text stands for where clients share the statements of a backend: a constant is read by the settings of whoever
//! prepares it, and read anew by those of whoever uses it after its tables have changed. Nobody is to get another's day.

use crate::support::message::*;
use crate::support::{Client, Cluster, Proxy, until};

const PID: &str = "/* halyard.route: primary */ SELECT pg_backend_pid()";
const SHARED: &str = "/* halyard.route: primary */ ";

/// A proxy whose clients have one backend between them.
fn one_backend() -> (&'static Cluster, Proxy) {
    let cluster = Cluster::shared();
    (cluster, cluster.proxy().set("pool.size", 1).start())
}

fn run(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute("", 0)].concat()
}

/// What a statement answers with.
fn ask(client: &mut Client, name: &str) -> Option<String> {
    client.send(&[run(name), sync()].concat());
    told(client)
}

/// The same of one that is prepared for it.
fn ask_anew(client: &mut Client, name: &str, text: &str) -> Option<String> {
    client.send(&[parse(name, text), run(name), sync()].concat());
    told(client)
}

fn told(client: &mut Client) -> Option<String> {
    let answer = client.answer();
    assert!(answer.error.is_none(), "{:?}", answer.error);
    answer.rows.last().and_then(|row| row[0].clone())
}

fn day(day: &str) -> Option<String> {
    Some(day.to_owned())
}

/// Takes the backend away; the next has nothing prepared.
fn lose_backend(cluster: &Cluster, client: &mut Client) {
    let pid = client.value(PID);
    let mut direct = cluster.superuser(cluster.primary()).connect();
    direct.run(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    until("another backend", || {
        let answer = client.query(PID);
        answer.error.is_none() && answer.rows[0][0].as_deref() != Some(&pid)
    });
}

/// The server read the plan anew under the settings of whoever came first, and kept it for all.
#[test]
fn a_plan_that_is_made_anew_under_other_settings_is_nobody_elses() {
    let (cluster, proxy) = one_backend();
    cluster.prepare("DROP TABLE IF EXISTS replanned; CREATE TABLE replanned (n int)");
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let text = format!("{SHARED}SELECT '01/02/2024'::date, count(*) FROM replanned");
    for client in [&mut one, &mut other] {
        assert_eq!(ask_anew(client, "s", &text), day("2024-01-02"));
    }
    let mut direct = cluster.superuser(cluster.primary()).connect();
    direct.run("INSERT INTO replanned VALUES (1)");
    direct.run("ANALYZE replanned");
    other.run("BEGIN");
    other.run("SET LOCAL datestyle = 'ISO, DMY'");
    // As a server has it.
    assert_eq!(ask(&mut other, "s"), day("2024-02-01"));
    other.run("COMMIT");
    assert_eq!(ask_anew(&mut other, "t", &text), day("2024-01-02"));
    assert_eq!(ask(&mut one, "s"), day("2024-01-02"));
    // Whether the server had a reason to or not: a schema that somebody has made is one (`PlanCacheSysCallback`).
    other.run("BEGIN");
    other.run("SET LOCAL datestyle = 'ISO, DMY'");
    ask(&mut other, "s");
    other.run("COMMIT");
    assert_eq!(ask(&mut one, "s"), day("2024-01-02"));
}

/// Only what a text says itself was seen to change settings.
#[test]
fn what_is_prepared_behind_code_that_nobody_has_read_is_nobody_elses() {
    Cluster::shared().prepare(
        "CREATE OR REPLACE FUNCTION sets_datestyle() RETURNS void LANGUAGE plpgsql AS \
         $$ begin perform set_config('datestyle', 'ISO, DMY', true); end $$",
    );
    let (_, proxy) = one_backend();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let changes = [
        "DO $$ begin perform set_config('datestyle', 'ISO, DMY', true); end $$",
        "SELECT sets_datestyle()",
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let text = format!("{SHARED}SELECT '03/04/2024'::date + {number}");
        let name = &format!("s{number}");
        let days = ["2024-03-04", "2024-03-05"];
        let other_days = ["2024-04-03", "2024-04-04"];
        other.run("BEGIN");
        other.run(change);
        assert_eq!(
            ask_anew(&mut other, name, &text),
            day(other_days[number]),
            "{change}"
        );
        other.run("COMMIT");
        other.run("RESET datestyle");
        assert_eq!(ask_anew(&mut one, name, &text), day(days[number]), "{change}");
        // In one batch.
        let (name, text) = (format!("t{number}"), format!("{text} + 0"));
        let both = [unnamed(change, &[]), parse(&name, &text), run(&name), sync()].concat();
        other.run("BEGIN");
        other.send(&both);
        assert_eq!(told(&mut other), day(other_days[number]), "{change}");
        other.run("COMMIT");
        other.run("RESET datestyle");
        assert_eq!(ask_anew(&mut one, &name, &text), day(days[number]), "{change}");
    }
}

/// No quote is in its text.
#[test]
fn a_comparison_with_null_is_read_as_its_own_client_has_it() {
    let (cluster, proxy) = one_backend();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let text = format!("{SHARED}SELECT a = null FROM (VALUES (null::int)) v(a)");
    assert_eq!(ask_anew(&mut one, "s", &text), None);
    lose_backend(cluster, &mut one);
    one.run("BEGIN");
    one.run("SET LOCAL transform_null_equals = on");
    ask(&mut one, "s");
    one.run("COMMIT");
    assert_eq!(ask_anew(&mut other, "s", &text), None);
    assert_eq!(ask(&mut one, "s"), None);
}

/// The statement that was prepared under settings of the moment stayed, where the moment ended in the same batch.
#[test]
fn a_moment_that_ends_in_its_batch_leaves_nothing() {
    let (cluster, proxy) = one_backend();
    let mut client = proxy.connect();
    let text = format!("{SHARED}SELECT '07/08/2024'::date + 0");
    assert_eq!(ask_anew(&mut client, "s", &text), day("2024-07-08"));
    client.send(&[parse("c", "COMMIT"), sync()].concat());
    client.answer();
    // In a block.
    lose_backend(cluster, &mut client);
    client.run("PREPARE keeps_its_backend AS SELECT 1");
    client.run("BEGIN");
    client.run("SET LOCAL datestyle = 'ISO, DMY'");
    client.send(&[run("s"), run("c"), sync()].concat());
    assert!(client.answer().error.is_none());
    for _ in 0..2 {
        assert_eq!(ask(&mut client, "s"), day("2024-07-08"));
    }
    client.run("DEALLOCATE keeps_its_backend");
    // In a transaction that ends with its Sync, and with what is sent behind it at once.
    lose_backend(cluster, &mut client);
    let local = unnamed("SET LOCAL datestyle = 'ISO, DMY'", &[]);
    client.send(&[local, run("s"), sync(), run("s"), sync()].concat());
    assert!(client.answer().error.is_none());
    assert_eq!(told(&mut client), day("2024-07-08"));
    assert_eq!(ask(&mut client, "s"), day("2024-07-08"));
}

/// One SET LOCAL in a session that keeps its backend, and all that it prepared was its own from then on.
#[test]
fn a_session_that_keeps_its_backend_shares_again_behind_its_block() {
    let (_, proxy) = one_backend();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let text = format!("{SHARED}SELECT 'shared behind a moment'::text");
    one.run("PREPARE keeps_its_backend AS SELECT 1");
    one.run("BEGIN");
    one.run("SET LOCAL datestyle = 'ISO, DMY'");
    one.run("COMMIT");
    let count = format!(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement = '{}'",
        text.replace('\'', "''")
    );
    ask_anew(&mut one, "s", &text);
    one.run("DEALLOCATE keeps_its_backend");
    ask_anew(&mut other, "s", &text);
    assert_eq!(other.value(&format!("{SHARED}{count}")), "1");
}

/// It was looked for behind a single quote alone.
#[test]
fn a_moment_in_any_quotes_is_that_of_its_own_parse() {
    let (_, proxy) = one_backend();
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    let text = format!("{SHARED}SELECT $$now$$::timestamptz::text");
    let before = ask_anew(&mut one, "s", &text);
    let behind = ask_anew(&mut other, "s", &text);
    assert!(before < behind, "{before:?} {behind:?}");
    assert_eq!(ask(&mut one, "s"), before);
}
