use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// The shortest file that works.
const MINIMAL: &str = r#"
    [[node]]
    name = "node1"
    host = "127.0.0.1"
    [health]
    user = "halyard_health"
"#;

const REFERENCE: &str = include_str!("../../../config.toml");

fn nothing_set(_: &str) -> Option<String> {
    None
}

fn checked(text: &str) -> Checked {
    parse(text, Path::new("h.toml"), &nothing_set).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The minimal file with `text` added.
fn with(text: &str) -> String {
    format!("{MINIMAL}{text}")
}

/// All findings for the minimal file with `text` added, errors or not.
fn findings(text: &str) -> String {
    let path = PathBuf::from("h.toml");
    match parse(&with(text), &path, &nothing_set) {
        Ok(checked) => ConfigErrors {
            file: path,
            findings: checked.warnings,
        }
        .to_string(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn the_minimal_file_means_the_documented_defaults() {
    let config = checked(MINIMAL).config;
    assert_eq!(
        config.listeners[0].address,
        ListenAddress::Tcp("127.0.0.1:6432".parse().expect("an address"))
    );
    assert_eq!(config.http, Some("127.0.0.1:9432".parse().expect("an address")));
    assert_eq!((config.pool.size, config.pool.mode), (20, PoolMode::Transaction));
    assert_eq!(config.failover.hold, Duration::from_secs(60));
    assert_eq!(config.limits.client_connections_max, 10_000);
    assert_eq!(config.routing.statement_size_max, 65_536);
    assert_eq!(config.health.interval, Duration::from_millis(250));
    assert_eq!(config.auth.rules.len(), 1);
    assert_eq!(config.auth.rules[0].method, AuthMethod::ScramSha256);
    assert!(config.general.workers >= 1, "one per core");
    assert_eq!(config.engine, Engine::Observed);
}

#[test]
fn the_reference_configuration_states_the_defaults() {
    let mut reference = checked(REFERENCE).config;
    let built_in = checked(MINIMAL).config;
    // Nodes, users and the health role have no defaults; what a node's settings are without being told is compared below.
    reference.nodes.truncate(1);
    reference.auth.users.clear();
    assert_eq!(reference, built_in);
}

#[test]
fn settings_without_a_default_are_commented_with_what_they_mean_unless_given() {
    let observed = "kind = \"observed\"";
    assert!(REFERENCE.contains(observed));
    let monitor = r#"
        [engine]
        kind = "pg_auto_failover"
        host = "127.0.0.1"
    "#;
    let built_in = checked(&with(monitor)).config.engine;
    let uncommented: String = uncommented(REFERENCE)
        .lines()
        .filter(|line| {
            let elsewhere = ["password", "root_certificate", "members"];
            !elsewhere.iter().any(|setting| line.starts_with(setting))
        })
        .map(|line| line.replace(observed, "kind = \"pg_auto_failover\"") + "\n")
        .collect();
    let without_tls = uncommented.split("[client_tls]").next().expect("a first part");
    assert_eq!(checked(without_tls).config.engine, built_in);
    let user = &checked(without_tls).config.auth.users[0];
    let pool = checked(MINIMAL).config.pool;
    assert_eq!(
        (user.pool_size, user.pool_mode),
        (Some(pool.size), Some(pool.mode))
    );
}

/// Of the settings without a default the reference shows a value that is one.
#[test]
fn members_of_patroni_are_shown_as_they_are_written() {
    let engine: String = uncommented(REFERENCE)
        .lines()
        .filter(|line| line.starts_with("members"))
        .map(|line| format!("[engine]\nkind = \"patroni\"\n{line}\n"))
        .collect();
    let members = match checked(&with(&engine)).config.engine {
        Engine::Patroni { members } => members,
        other => panic!("{other:?}"),
    };
    assert_eq!(members.len(), 3);
    assert_eq!(members[0], ("10.0.0.1".to_owned(), 8008));
}

/// The reference with its settings that have no default switched on.
fn uncommented(text: &str) -> String {
    let setting = |line: &str| {
        let name = line.strip_prefix('#')?;
        name.starts_with(|c: char| c.is_ascii_lowercase() || c == '[')
            .then(|| name.to_owned())
    };
    text.lines()
        .map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect()
}

#[test]
fn the_reference_configuration_misses_no_setting_and_has_none_too_many() {
    let text = uncommented(REFERENCE);
    let (_, gathered) = read::read(&text, Path::new("h.toml"), &nothing_set);
    let table: toml::Table = text.parse().expect("it is TOML");
    let mut written = BTreeSet::new();
    names("", &toml::Value::Table(table), &mut written);
    assert_eq!(written, gathered.known);
    assert!(written.len() > 80, "the comparison saw the settings");
}

fn names(path: &str, value: &toml::Value, into: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                into.insert(path.clone());
                names(&path, value, into);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| names(path, item, into)),
        _ => {}
    }
}

#[test]
fn every_error_is_told_at_once_with_its_place() {
    let text = r#"[[node]]
name = "node1"
host = "127.0.0.1"
port = 0
[health]
user = "h"
interval = "5 sec"
timeout = 500
[pool]
mode = "sesion"
sizee = 7
idle_timeout = "1000d"
[general]
log_level = 3
[polo]
"#;
    let errors = parse(text, Path::new("h.toml"), &nothing_set).expect_err("eight errors and a warning");
    let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    let expected = [
        "h.toml: warning: without a section [[user]] nobody can log in",
        "h.toml:4:8: error: node.port: 0 is outside the valid range (1 .. 65535)",
        "h.toml:7:12: error: health.interval: \"5 sec\" is not a duration such as \"1.5s\": the unit is not known (units are \
         us, ms, s, min, h, d)",
        "h.toml:8:11: error: health.timeout: 500 has no unit: write a duration such as \"1.5s\", in quotes",
        "h.toml:10:8: error: pool.mode: \"sesion\" is not one of \"transaction\", \"session\", \"statement\"; did you mean \"session\"?",
        "h.toml:11:1: error: there is no setting \"sizee\" in [pool]; did you mean \"size\"?",
        "h.toml:12:16: error: pool.idle_timeout: \"1000d\" is outside the valid range (1s .. 30d)",
        "h.toml:14:13: error: general.log_level: 3 is not a text in quotes",
        "h.toml:15:2: error: there is no setting \"polo\" at the top level; did you mean \"pool\"?",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_is_required_is_asked_for_by_name() {
    let errors = parse("[[node]]\n", Path::new("h.toml"), &nothing_set)
        .expect_err("incomplete")
        .to_string();
    for wanted in [
        "h.toml:1:1: error: node.name: is required",
        "node.host: is required",
        "health.user: is required",
    ] {
        assert!(errors.contains(wanted), "{errors}");
    }
    let errors = parse("", Path::new("h.toml"), &nothing_set)
        .expect_err("empty")
        .to_string();
    assert!(
        errors.contains("h.toml: error: node: at least one section [[node]] is required"),
        "{errors}"
    );
}

#[test]
fn no_error_repeats_a_secret() {
    for text in [
        "[[user]]\nname = \"a\"\npassword = hunter2\n",
        "[[user]]\nname = \"a\"\npassword = \"hunter2\n",
        "[[user]]\nname = \"a\"\npassword \"hunter2\"\n",
        "[[user]]\nname = \"a\"\npassword = \"\"\"x\nhunter2\n",
        "[[user]]\nname = \"a\"\npassword = [\"hunter2\"]\n",
        "[[user]]\nname = \"a\"\npassword = { text = \"hunter2\" }\n",
        "[[user]]\nname = \"a\"\npassword = \"hunter2\\q\"\n",
        "[[user]]\nname = \"a\"\npasswort = \"hunter2\"\n",
        "[[user]]\nname = \"a\"\npassword = \"hunter2\"\npassword = \"hunter2\"\n",
        "[[user]]\nname = \"a\"\npassword = \"hunter2\"\npassword_file = \"f\"\n",
        "[[user]]\nname = \"a\"\npassword = \"SCRAM-SHA-256$hunter2\"\n",
        "user = [{ name = \"a\", password = \"hunter2\", size = 1 }]\n",
    ] {
        // Keys at the top level must stand before the first section.
        let text = format!("{text}{MINIMAL}");
        let errors = parse(&text, Path::new("h.toml"), &nothing_set).expect_err(&text);
        assert!(
            !format!("{errors}{errors:?}").contains("hunter2"),
            "{text}\n{errors}"
        );
        assert!(errors.to_string().starts_with("h.toml:"), "{errors}");
    }
    let config = checked(&with("[[user]]\nname = \"a\"\npassword = \"hunter2\"\n")).config;
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_syntax_error_is_told_with_its_place_and_key() {
    let errors = findings("[pool]\nsize = = 4\nmin_size = 11000\n");
    assert!(
        errors.contains("h.toml:8:8: error: ") && errors.contains("(near \"size\")"),
        "{errors}"
    );
    assert!(
        errors.contains("pool.min_size: 11000 is outside the valid range (0 .. 10000)"),
        "{errors}"
    );
}

#[test]
fn settings_are_checked_against_each_other() {
    for (text, expected) in [
        (
            "[[node]]\nname = \"node1\"\nhost = \"b\"\n",
            "h.toml:7:1: error: the name \"node1\" is taken already by the section at line 2",
        ),
        (
            "[[node]]\nname = \"b\"\nhost = \"127.0.0.1\"\n",
            "error: the address 127.0.0.1:5432 is taken already",
        ),
        (
            "[[user]]\nname = \"a\"\n[[user]]\nname = \"a\"\n",
            "h.toml:9:1: error: the user \"a\" is taken already",
        ),
        (
            "[[listener]]\naddress = \"0.0.0.0:7000\"\n[[listener]]\naddress = \"127.0.0.1:7000\"\n",
            "error: the address 127.0.0.1:7000 clashes",
        ),
        (
            "[http]\naddress = \"127.0.0.1:6432\"\n",
            "error: the address 127.0.0.1:6432 clashes",
        ),
        (
            "[[listener]]\naddress = \"/tmp/.s.PGSQL.1\"\n[[listener]]\naddress = \"/tmp/.s.PGSQL.1\"\n",
            "the address /tmp/.s.PGSQL.1 clashes",
        ),
        (
            "[[listener]]\naddress = \"/tmp/halyard\"\n",
            "warning: listener.address: libpq finds a socket only by",
        ),
        (
            "[[listener]]\naddress = \"localhost\"\n",
            "error: listener.address: \"localhost\" is not an address and a port",
        ),
        (
            "[pool]\nsize = 5\nmin_size = 6\n",
            "error: pool.min_size (6) is more than pool.size (5)",
        ),
        (
            "[limits]\nunauthenticated_max = 20000\n",
            "warning: limits.unauthenticated_max is more than",
        ),
        (
            "[[user]]\nname = \"a\"\npool_size = 600\n",
            "warning: the pools of all users come to 600 connections",
        ),
        (
            "[[user]]\nname = \"a\"\n",
            "warning: user \"a\" has no password and cannot log in",
        ),
        (
            "[[auth.rule]]\nconnection = \"hostssl\"\n",
            "warning: a rule for hostssl matches nothing without [client_tls]",
        ),
        (
            "[server_tls]\nmode = \"verify-full\"\n",
            "error: server_tls.mode: certificates are checked only against",
        ),
        (
            "[engine]\nhost = \"m\"\n",
            "error: engine.host: has a meaning only with kind = \"pg_auto_failover\"",
        ),
        (
            "[engine]\nkind = \"pg_auto_failover\"\n",
            "h.toml:7:1: error: engine.host: is required",
        ),
        (
            "[engine]\nkind = \"patroni\"\n",
            "error: engine.members: at least one is required",
        ),
        (
            "[engine]\nkind = \"patroni\"\nmembers = [\"http://m:8008\"]\n",
            "is not a host and a port, such as 10.0.0.1:8008",
        ),
        (
            "[engine]\nmembers = [\"m:8008\"]\n",
            "error: engine.members: has a meaning only with kind = \"patroni\"",
        ),
        (
            "[general]\nstate_file = \"here\"\n",
            "error: general.state_file: must be a full path",
        ),
        (
            "[health]\nsystem_identifier = \"-7\"\n",
            "error: health.system_identifier: must be a number in quotes, as pg_controldata shows it",
        ),
        (
            "[general]\ncontrol_socket = \"here\"\n",
            "error: general.control_socket: must be a full path",
        ),
        (
            "[engine]\nkind = \"pg_auto_failover\"\nhost = \"m\"\n[failover]\nhold = \"10s\"\n",
            "warning: failover.hold (10s) is less than a failover",
        ),
        ("", "warning: without a section [[user]] nobody can log in"),
    ] {
        let found = findings(text);
        assert!(
            found.contains(expected),
            "{text}\nwanted {expected}\nfound {found}"
        );
    }
}

#[test]
fn evidence_may_not_be_stale_before_it_can_be_renewed() {
    let error = |stale: &str| {
        let text =
            MINIMAL.to_owned() + &format!("interval = \"1s\"\ntimeout = \"1s\"\nstale_after = \"{stale}\"\n");
        parse(&text, Path::new("h.toml"), &nothing_set)
    };
    let errors = error("1999ms").expect_err("too short").to_string();
    assert!(
        errors.contains("health.stale_after (1999ms) must be at least interval + timeout (2s)"),
        "{errors}"
    );
    assert!(
        error("2s")
            .expect("enough")
            .warnings
            .iter()
            .any(|w| w.message.contains("leaves by age"))
    );
}

#[test]
fn reads_that_nobody_may_serve_are_noticed() {
    let nobody = "[[node]]\nname = \"a\"\nhost = \"a\"\nreads = \"never\"\n[health]\nuser = \"h\"\n";
    let warnings = checked(nobody).warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.message.contains("all go to the primary")),
        "{warnings:?}"
    );
    let refused = format!("{nobody}[routing]\nread_fallback = \"error\"\n");
    let errors = parse(&refused, Path::new("h.toml"), &nothing_set).expect_err("no read could succeed");
    assert!(errors.to_string().contains("h.toml:7:1: error:"), "{errors}");
}

#[test]
fn trust_towards_the_network_is_a_warning_and_towards_loopback_is_none() {
    let trust = |address: &str, rule: &str| {
        findings(&format!(
            "[[listener]]\naddress = \"{address}\"\n[[auth.rule]]\nmethod = \"trust\"\n{rule}\n"
        ))
    };
    let warned = |found: &str| found.contains("lets anybody in who reaches 0.0.0.0:6432");
    assert!(warned(&trust("0.0.0.0:6432", "")));
    assert!(warned(&trust(
        "0.0.0.0:6432",
        "addresses = [\"127.0.0.1\", \"10.0.0.0/8\"]"
    )));
    assert!(!warned(&trust(
        "0.0.0.0:6432",
        "addresses = [\"127.0.0.0/8\", \"::1\"]"
    )));
    assert!(!warned(&trust("0.0.0.0:6432", "connection = \"local\"")));
    assert!(!trust("127.0.0.1:6432", "").contains("lets anybody in"));
}

#[test]
fn networks_are_addresses_with_a_prefix_that_fits() {
    let rule = |addresses: &str| {
        checked(&with(&format!("[[auth.rule]]\naddresses = {addresses}\n")))
            .config
            .auth
            .rules
    };
    assert_eq!(
        rule("[\"10.0.0.0/8\", \"::1\"]")[0].addresses,
        [
            ("10.0.0.0".parse().expect("v4"), 8),
            ("::1".parse().expect("v6"), 128)
        ]
    );
    for wrong in ["10.0.0.0/33", "::1/129", "10.0.0/8", "all", "10.0.0.0/"] {
        let found = findings(&format!("[[auth.rule]]\naddresses = [\"{wrong}\"]\n"));
        assert!(
            found.contains(&format!("\"{wrong}\" is neither an address nor a network")),
            "{found}"
        );
    }
}

#[test]
fn passwords_come_from_the_file_another_file_or_the_environment() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("h.toml");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "from file\n").expect("written");
    let allow = |mode| std::fs::set_permissions(&secret, PermissionsExt::from_mode(mode)).expect("own file");
    let environment = |name: &str| (name == "PW").then(|| "from environment".to_owned());
    let read = |line: &str| parse(&format!("{MINIMAL}{line}\n"), &config, &environment);
    let password = |line: &str| read(line).map(|checked| checked.config.health.password);

    allow(0o600);
    for (line, expected) in [
        ("password = \"inline\"", "inline"),
        ("password_file = \"secret\"", "from file"),
        ("password_env = \"PW\"", "from environment"),
    ] {
        assert_eq!(password(line), Ok(Some(Secret::new(expected))), "{line}");
    }
    allow(0o644);
    let warnings = read("password_file = \"secret\"")
        .expect("a warning only")
        .warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.message.contains("can be read by others")),
        "{warnings:?}"
    );
    allow(0o602);
    for (line, error) in [
        ("password_file = \"secret\"", "can be changed by others"),
        ("password_file = \"nowhere\"", "No such file"),
        ("password_env = \"UNSET\"", "\"UNSET\" is not set"),
        (
            "password = \"a\"\npassword_env = \"PW\"",
            "h.toml:8:16: error: health.password_env: the password is given already by password",
        ),
    ] {
        let errors = read(line).expect_err(line).to_string();
        assert!(errors.contains(error), "{line}: {errors}");
    }
}

#[test]
fn a_file_with_secrets_that_others_may_read_is_a_warning() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("h.toml");
    for (line, mode, warned) in [
        ("password = \"x\"", 0o644, true),
        ("password = \"x\"", 0o600, false),
        ("database = \"x\"", 0o644, false),
    ] {
        std::fs::write(&path, format!("{MINIMAL}{line}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("own file");
        let warnings = load(&path).expect("it can be used").warnings;
        let found = warnings
            .iter()
            .any(|w| w.message.contains("holds a password and is open to others"));
        assert_eq!(found, warned, "{line} {mode:o}: {warnings:?}");
    }
    let errors = load(&folder.path().join("nowhere"))
        .expect_err("no such file")
        .to_string();
    assert!(
        errors.contains("nowhere: error: ") && errors.contains("No such file"),
        "{errors}"
    );
    std::fs::write(&path, vec![b'#'; 2 << 20]).expect("written");
    assert!(
        load(&path)
            .expect_err("too large")
            .to_string()
            .contains("is larger than 1048576 bytes")
    );
}

#[test]
fn verifiers_are_taken_as_in_pg_authid_and_broken_ones_refused() {
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let user = |secret: &str| findings(&format!("[[user]]\nname = \"a\"\npassword = \"{secret}\"\n"));
    assert_eq!(user(&format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}")), "");
    for broken in [
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA",
        "SCRAM-SHA-256$0:c2FsdA==$x:y",
    ] {
        assert!(
            user(broken).contains("error: user.password: the SCRAM-SHA-256 verifier is malformed"),
            "{broken}"
        );
    }
}

/// `md5` with a digit too few was taken for the password without a word.
#[test]
fn what_begins_as_an_md5_hash_and_is_none_is_told() {
    let user = |secret: &str| findings(&format!("[[user]]\nname = \"a\"\npassword = \"{secret}\"\n"));
    assert_eq!(user("md50123456789abcdef0123456789abcdef"), "");
    for broken in ["md5abc", "md50123456789ABCDEF0123456789abcdef"] {
        assert!(
            user(broken).contains("warning: user.password: it begins as an md5 hash does and is none"),
            "{broken}"
        );
        assert!(!user(broken).contains(broken), "a secret is not told");
    }
}

/// What stood behind a header without its end was called unknown at the top level as well.
#[test]
fn an_unclosed_header_is_one_error() {
    for rest in [
        "size = 3\n",
        "size = 3\nmode = \"session\"\n[routing]\nread_wait = \"1s\"\n",
    ] {
        let found = findings(&format!("[pool\n{rest}"));
        assert_eq!(found.matches("error:").count(), 1, "{found}");
        assert!(found.contains("unclosed table"), "{found}");
    }
    let found = findings("[pool\nsize = 3\n[routing]\nnonsense = 1\n");
    assert_eq!(found.matches("error:").count(), 2, "{found}");
}

#[test]
fn tls_files_must_exist_be_pem_and_keep_the_key_private() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("h.toml");
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(folder.path().join("crt"), pair.cert.pem()).expect("written");
    std::fs::write(folder.path().join("key"), pair.signing_key.serialize_pem()).expect("written");
    std::fs::write(folder.path().join("other"), "hello").expect("written");
    let allow = |mode| {
        std::fs::set_permissions(folder.path().join("key"), PermissionsExt::from_mode(mode)).expect("own");
    };
    let read = |certificate: &str, key: &str| {
        let text = format!("{MINIMAL}[client_tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n");
        parse(&text, &config, &nothing_set)
    };
    allow(0o600);
    let tls = read("crt", "key")
        .expect("it can be used")
        .config
        .client_tls
        .expect("TLS is on");
    assert_eq!(
        (tls.certificate, tls.required),
        (folder.path().join("crt"), false)
    );
    for (certificate, key, expected) in [
        ("nowhere", "key", "client_tls.certificate: "),
        ("other", "key", "is not a PEM file"),
        ("crt", "nowhere", "No such file"),
    ] {
        let errors = read(certificate, key).expect_err(expected).to_string();
        assert!(errors.contains(expected), "{errors}");
    }
    allow(0o644);
    let errors = read("crt", "key").expect_err("others could read it").to_string();
    assert!(errors.contains("is open to others than its owner"), "{errors}");
}
