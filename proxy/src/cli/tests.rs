use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use clap::CommandFactory;

use super::look::{healthcheck, status};
use super::route::route;
use super::*;
use crate::status::example;

const MINIMAL: &str = "[[node]]\nname = \"a\"\nhost = \"127.0.0.1\"\n[health]\nuser = \"h\"\n";

fn parsed(words: &[&str]) -> Command {
    Cli::try_parse_from([&["halyard"], words].concat())
        .unwrap_or_else(|error| panic!("{error}"))
        .command
}

/// Runs `work` into a text; the exit code comes first.
fn output(work: impl FnOnce(&mut Vec<u8>) -> io::Result<ExitCode>) -> (ExitCode, String) {
    let mut out = Vec::new();
    let code = work(&mut out).unwrap_or_else(|error| panic!("{error}"));
    (code, String::from_utf8(out).expect("text"))
}

/// Answers one connection with `answer` as it stands.
fn answering(answer: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the test connects");
        let mut request = [0; 1024];
        let count = stream.read(&mut request).expect("a request");
        assert!(request[..count].starts_with(b"GET /"), "a GET");
        stream.write_all(answer.as_bytes()).expect("written");
    });
    address
}

fn status_args(words: &[&str]) -> StatusArgs {
    match parsed(&[&["status"], words].concat()) {
        Command::Status(args) => args,
        other => panic!("{other:?}"),
    }
}

fn healthcheck_args(address: SocketAddr) -> HealthcheckArgs {
    match parsed(&["healthcheck", "--url", &format!("http://{address}")]) {
        Command::Healthcheck(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    assert!(Cli::try_parse_from(["halyard"]).is_err(), "a command is wanted");
    assert!(Cli::try_parse_from(["halyard", "status", "--url", "http://a", "--config", "b"]).is_err());
}

#[test]
fn check_prints_every_finding_and_says_whether_the_file_can_be_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("h.toml");
    let run = |text: &str| {
        std::fs::write(&file, text).expect("written");
        output(|out| check(&ConfigArgs { config: file.clone() }, out))
    };
    let (code, text) = run(MINIMAL);
    assert_eq!(code, ExitCode::SUCCESS);
    let name = file.display();
    let warning = format!("{name}: warning: without a section [[user]] nobody can log in\n");
    assert_eq!(
        text,
        format!("{warning}{name} can be used; errors: 0, warnings: 1\n")
    );

    let (code, text) = run(&format!("{MINIMAL}[pool]\nsize = 0\nmode = \"x\"\n"));
    assert_eq!(code, ExitCode::FAILURE);
    assert!(
        text.contains(":7:8: error: pool.size: 0 is outside") && text.contains(":8:8: error: pool.mode"),
        "{text}"
    );
    assert!(
        text.ends_with("cannot be used; errors: 2, warnings: 1\n"),
        "{text}"
    );
}

#[test]
fn the_reference_configuration_can_be_used() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let (code, text) = output(|out| check(&ConfigArgs { config: reference }, out));
    assert_eq!(code, ExitCode::SUCCESS, "{text}");
}

#[test]
fn status_is_shown_for_people_or_as_json() {
    let json = serde_json::to_string(&example()).expect("it can be written");
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{json}");
    let url = || format!("http://{}", answering(answer.clone()));
    let (code, text) = output(|out| status(&status_args(&["--url", &url()]), out));
    assert_eq!(
        (code, text.trim_end()),
        (ExitCode::SUCCESS, example().to_text().trim_end())
    );
    let (_, text) = output(|out| status(&status_args(&["--url", &url(), "--json"]), out));
    assert_eq!(text, format!("{json}\n"));
}

#[test]
fn status_finds_the_proxy_by_its_configuration() {
    let json = serde_json::to_string(&example()).expect("it can be written");
    let address = answering(format!("HTTP/1.1 200 OK\r\n\r\n{json}"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("h.toml");
    let wildcard = format!("{MINIMAL}[http]\naddress = \"0.0.0.0:{}\"\n", address.port());
    std::fs::write(&file, wildcard).expect("written");
    let file = file.to_str().expect("UTF-8");
    let (code, _) = output(|out| status(&status_args(&["--config", file]), out));
    assert_eq!(code, ExitCode::SUCCESS);

    std::fs::write(file, format!("{MINIMAL}[http]\naddress = \"off\"\n")).expect("written");
    let error = status(&status_args(&["--config", file]), &mut Vec::new())
        .expect_err("it is off")
        .to_string();
    assert!(error.contains("[http] is off in "), "{error}");
}

#[test]
fn what_is_no_status_is_told_as_such() {
    for (answer, expected) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        ("HTTP/1.1 200 OK\r\n\r\n{}", "not a status of this version"),
        ("E\0\0\0\x10", "does not answer in HTTP"),
    ] {
        let args = status_args(&["--url", &format!("http://{}", answering(answer.to_owned()))]);
        let error = status(&args, &mut Vec::new()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn healthcheck_exits_as_the_proxy_is_ready_or_not() {
    let (code, text) = output(|out| {
        healthcheck(
            &healthcheck_args(answering("HTTP/1.1 200 OK\r\n\r\n".into())),
            out,
        )
    });
    assert_eq!((code, text.as_str()), (ExitCode::SUCCESS, "ready\n"));
    let refusal = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"reasons\":[\"draining\"]}";
    let (code, text) = output(|out| healthcheck(&healthcheck_args(answering(refusal.into())), out));
    assert_eq!(code, ExitCode::FAILURE);
    assert!(text.contains("503") && text.contains("draining"), "{text}");
}

#[test]
fn serve_hands_on_a_configuration_only_if_it_can_be_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("h.toml");
    std::fs::write(&file, "nonsense").expect("written");
    let args = ConfigArgs { config: file };
    let code = serve(args, |_, _| -> Result<(), &str> { panic!("it cannot be used") });
    assert_eq!(code, ExitCode::FAILURE);
}

fn routed(words: &[&str]) -> String {
    let Command::Route(args) = parsed(&[&["route"], words].concat()) else {
        panic!("another command");
    };
    let (code, text) = output(|out| route(&args, out));
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    text
}

#[test]
fn route_says_class_rule_token_and_target() {
    let text = routed(&["SELECT nextval('s')"]);
    for line in [
        "class        write\n",
        "rule         volatile_function\n",
        "token        \"nextval\" at byte 7 (line 1, column 8)\n",
        "because      function nextval is volatile\n",
        "target       the primary\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let text = routed(&["BEGIN READ ONLY"]);
    assert!(text.contains("class        transaction control\n"), "{text}");
    assert!(text.contains("target       a standby"), "{text}");
}

#[test]
fn route_explains_each_statement_of_a_file_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("statements.sql");
    std::fs::write(&file, "SELECT 1;\n-- hm\nLISTEN c; SELECT 'a;b'").expect("written");
    let text = routed(&["--json", "-f", file.to_str().expect("text")]);
    let rows: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let column = |name| {
        rows.iter()
            .map(|row| row[name].as_str().expect("text"))
            .collect::<Vec<_>>()
    };
    assert_eq!(column("class"), ["read", "session", "read"]);
    assert_eq!(column("target"), ["standby", "primary", "standby"]);
    assert_eq!(rows[1]["session"][0]["effect"], "LISTEN");
    assert_eq!(rows[1]["findings"][0]["place"]["line"], 2);
}

#[test]
fn route_takes_a_catalogue_in_three_shapes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("catalog");
    for (rows, class) in [
        ("f\tmine\ts\tf\n", "read"),
        ("mine\tpublic\ti\n", "read"),
        ("mine\tpublic\tv\n", "write"),
        (
            r#"[{"name": "mine", "schema": "public", "volatility": "s"}]"#,
            "read",
        ),
        (
            r#"[{"kind": "f", "name": "mine", "detail": "v", "system": "f"}]"#,
            "write",
        ),
        (
            r#"[{"kind": "f", "name": "mine", "detail": "i", "system": false}]"#,
            "read",
        ),
    ] {
        std::fs::write(&file, rows).expect("written");
        let text = routed(&["--catalog", file.to_str().expect("text"), "SELECT mine()"]);
        assert!(
            text.contains(&format!("class        {class}\n")),
            "{rows}: {text}"
        );
    }
    for rows in ["a\tb\n", "[1]", "[{\"kind\": \"f\"}]", "f\tmine\tx\tf"] {
        std::fs::write(&file, rows).expect("written");
        let Command::Route(args) = parsed(&["route", "--catalog", file.to_str().expect("text"), "SELECT 1"])
        else {
            panic!("another command");
        };
        assert!(route(&args, &mut Vec::new()).is_err(), "{rows}");
    }
    assert!(routed(&["--catalog-query"]).contains("pg_proc"));
    assert!(
        Cli::try_parse_from(["halyard", "route"]).is_err(),
        "a statement is wanted"
    );
    assert!(Cli::try_parse_from(["halyard", "route", "SELECT 1", "-f", "x"]).is_err());
}
