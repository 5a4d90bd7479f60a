use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_secret_does_not_show_itself() {
    assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some(Secret(…))");
}

#[test]
fn exposure_follows_postgresqls_rule_for_keys() {
    for (mode, owner, exposure) in [
        (0o100_600, 1000, Exposure::Private),
        (0o100_400, 1000, Exposure::Private),
        (0o100_640, 1000, Exposure::Readable),
        (0o100_640, 0, Exposure::Private),
        (0o100_644, 0, Exposure::Readable),
        (0o100_660, 0, Exposure::Writable),
        (0o100_602, 1000, Exposure::Writable),
    ] {
        assert_eq!(exposure_of(mode, owner), exposure, "{mode:o} of {owner}");
    }
}

#[test]
fn a_password_file_holds_the_password_in_its_first_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("password");
    fs::write(&file, "pass word \nsecond\n").expect("written");
    assert_eq!(read_secret(&file), Ok(Secret::new("pass word ")));

    for (content, reason) in [
        (vec![b'\n'], "no password"),
        (vec![0xff], "not UTF-8"),
        (vec![b'x'; 70_000], "larger"),
    ] {
        fs::write(&file, content).expect("written");
        let error = read_secret(&file).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let error = read_secret(&folder.path().join("nowhere")).expect_err("no such file");
    assert!(
        error.contains("nowhere") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn exposure_is_read_from_the_file() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    for (mode, expected) in [
        (0o600, Exposure::Private),
        (0o604, Exposure::Readable),
        (0o622, Exposure::Writable),
    ] {
        fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("own file");
        assert_eq!(exposure(file.path()), expected, "{mode:o}");
    }
}

/// A pipe that nobody writes to kept `halyard check` waiting for ever.
#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    for path in [socket.as_path(), &pipe, folder.path(), Path::new("/dev/zero")] {
        let error = read_limited(path, 10).expect_err("it is no file");
        assert!(error.contains("is not a regular file"), "{error}");
    }
}
