//! Other people's clients, as they come: psql, pgbench and libpq.

use rcgen::{CertificateParams, KeyPair};

use crate::support::{Address, Cluster, Program, compiled, until};

#[test]
fn psql_runs_its_backslash_commands() {
    let proxy = Cluster::shared_proxy();
    let script = r"
DROP TABLE IF EXISTS by_psql;
CREATE TABLE by_psql (a int PRIMARY KEY, b text);
\copy by_psql FROM PROGRAM 'printf ''1\tone\n2\ttwo\n''' 
BEGIN;
\copy (SELECT b FROM by_psql ORDER BY a) TO STDOUT
SELECT count(*) AS rows FROM by_psql \gset
COMMIT;
\echo :rows rows
SELECT format('SELECT %s', g) FROM generate_series(1, 3) g \gexec
\set AUTOCOMMIT off
INSERT INTO by_psql VALUES (3, 'three');
ROLLBACK;
\set AUTOCOMMIT on
BEGIN;
SELECT count(*) FROM by_psql;
END;
\d by_psql
\dt by_psql
";
    let out = Program::psql(&proxy.address).input(script).succeed();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(&lines[..7], ["one", "two", "2 rows", "1", "2", "3", "2"]);
    assert!(out.contains("a|integer||not null|"), "{out}");
}

#[test]
fn psql_by_tls_as_sslmode_says() {
    let cluster = Cluster::shared();
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let paths = ["server.crt", "server.key"].map(|name| folder.path().join(name));
    std::fs::write(&paths[0], certificate.pem()).unwrap();
    std::fs::write(&paths[1], key.serialize_pem()).unwrap();
    std::fs::set_permissions(&paths[1], std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let [certificate, key] = paths.map(|path| path.to_str().unwrap().to_owned());
    let proxy = cluster
        .proxy()
        .set("client_tls.certificate", certificate.as_str())
        .set("client_tls.key", key.as_str())
        .set("client_tls.required", true)
        .cold()
        .start();
    let connect = |options: &str| {
        Program::psql(&proxy.address)
            .env("PGSSLROOTCERT", &certificate)
            .with(&[
                "-d",
                options,
                "-c",
                "\\conninfo",
                "-c",
                "LISTEN by_tls",
                "-c",
                "NOTIFY by_tls",
            ])
            .with(&["-c", "SELECT 'by TLS'"])
            .run()
    };
    for mode in ["prefer", "require", "verify-ca"] {
        let ended = connect(&format!("sslmode={mode}"));
        assert!(
            ended.success && ended.out.contains("SSL connection") && ended.out.ends_with("by TLS\n"),
            "{ended:?}"
        );
        assert!(
            ended.out.contains("notification \"by_tls\" received"),
            "{ended:?}"
        );
    }
    assert!(connect("host=localhost sslmode=verify-full").success);
    let refused = connect("sslmode=disable");
    assert!(!refused.success, "{refused:?}");
    assert!(
        !connect("host=127.0.0.2 sslmode=verify-full").success,
        "no certificate for this name"
    );
}

fn pgbench(address: &Address, arguments: &[&str]) -> String {
    let out = Program::pgbench(address).with(arguments).succeed();
    assert!(!out.contains("aborted"), "{out}");
    out
}

#[test]
fn pgbench_in_its_three_modes() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("pool.size", 4).start();
    pgbench(&proxy.address, &["-i", "-q", "-s", "1"]);
    cluster.replicated();
    // What a client has sent is counted when its turn is over: behind its answer, and before it is gone.
    let on_primary = || {
        until("all clients to be gone", || proxy.clients_of_any_state() == 0);
        proxy.metric(r#"halyard_statements_total{target="primary"}"#)
    };
    for mode in ["simple", "extended", "prepared"] {
        let written = on_primary();
        let out = pgbench(&proxy.address, &["-n", "-S", "-M", mode, "-c", "16", "-t", "50"]);
        assert!(
            out.contains("number of transactions actually processed: 800/800"),
            "{out}"
        );
        assert!(out.contains("number of failed transactions: 0"), "{out}");
        assert_eq!(
            on_primary(),
            written,
            "reads went to the primary with -M {mode}: {:?}",
            Vec::from_iter(
                proxy
                    .metrics()
                    .iter()
                    .filter(|(series, _)| series.contains("primary"))
            )
        );
        let out = pgbench(&proxy.address, &["-n", "-M", mode, "-c", "16", "-t", "10"]);
        assert!(
            out.contains("number of transactions actually processed: 160/160"),
            "{out}"
        );
        assert!(out.contains("number of failed transactions: 0"), "{out}");
    }
    let out = pgbench(&proxy.address, &["-n", "-C", "-c", "8", "-t", "5"]);
    assert!(out.contains("number of failed transactions: 0"), "{out}");
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
    let mut direct = cluster.app(cluster.primary().port).connect();
    assert_eq!(
        direct.value("SELECT count(*) FROM pgbench_history"),
        (3 * 160 + 40).to_string()
    );
}

#[test]
fn libpq_with_pipelines_copy_and_cancel() {
    let program = compiled("pipeline.c");
    let cluster = Cluster::shared();
    let direct = cluster.app(cluster.primary().port);
    assert_eq!(
        Program::new(&program, &direct).succeed(),
        "ok\n",
        "the test itself"
    );
    assert_eq!(
        Program::new(&program, &Cluster::shared_proxy().address).succeed(),
        "ok\n"
    );
}
