//! Other people's programs as clients: psql, pgbench, programs in C, in Python and in JavaScript.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::guardian;
use super::wire::Address;

/// A program that is to connect somewhere.
pub(crate) struct Program {
    command: Command,
    input: Option<String>,
}

/// How it ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Program {
    /// A program that libpq, or our scripts, connect by the environment.
    pub(crate) fn new(program: impl AsRef<std::ffi::OsStr>, address: &Address) -> Self {
        let mut command = Command::new(program);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", address.port.to_string())
            .env("PGUSER", &address.user)
            .env("PGPASSWORD", &address.password)
            .env("PGDATABASE", &address.database)
            .env_remove("PGOPTIONS")
            .stdin(Stdio::null());
        Self { command, input: None }
    }

    /// psql that prints bare rows and stops at the first error.
    pub(crate) fn psql(address: &Address) -> Self {
        Self::new("psql", address).with(&["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"])
    }

    /// pgbench.
    pub(crate) fn pgbench(address: &Address) -> Self {
        Self::new("/usr/lib/postgresql/15/bin/pgbench", address)
    }

    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads.
    pub(crate) fn input(mut self, text: &str) -> Self {
        self.input = Some(text.to_owned());
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Ended {
        let output = match self.input {
            None => self.command.output().unwrap(),
            Some(input) => feed(&mut self.command, &input),
        };
        Ended {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it prints; it must succeed.
    #[track_caller]
    pub(crate) fn succeed(self) -> String {
        let what = format!("{:?}", self.command.get_program());
        let ended = self.run();
        assert!(ended.success, "{what} failed\n{}\n{}", ended.out, ended.err);
        ended.out
    }
}

fn feed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program may leave before it has read everything; what it says of that is what counts.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// A C program of `tests/c`, compiled with libpq.
pub(crate) fn compiled(source: &str) -> PathBuf {
    let program = guardian::folder().join(source.trim_end_matches(".c"));
    let done = Command::new("cc")
        .args(["-Wall", "-Werror", "-O1", "-I/usr/include/postgresql", "-o"])
        .arg(&program)
        .arg(format!("{}/tests/c/{source}", env!("CARGO_MANIFEST_DIR")))
        .arg("-lpq")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

/// A Python program of `tests/python`, with the drivers of its requirements.
#[track_caller]
pub(crate) fn python(script: &str, address: &Address) -> Program {
    static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
    let interpreter = INTERPRETER.get_or_init(|| {
        let folder = installed("python/venv.sh");
        PathBuf::from(folder.trim()).join("bin/python")
    });
    Program::new(interpreter, address)
        .with(&[&format!("{TESTS}/python/{script}")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// A program of `tests/node`, with the drivers of its lock file.
#[track_caller]
pub(crate) fn node(script: &str, address: &Address) -> Program {
    static MODULES: OnceLock<String> = OnceLock::new();
    MODULES.get_or_init(|| installed("node/modules.sh"));
    Program::new("node", address).with(&[&format!("{TESTS}/node/{script}")])
}

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// Runs the script that installs drivers unless they are there, and returns what it prints.
#[track_caller]
fn installed(script: &str) -> String {
    let done = Command::new(format!("{TESTS}/{script}")).output().unwrap();
    let complaint = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script} installs no drivers: {complaint}");
    String::from_utf8(done.stdout).unwrap()
}
