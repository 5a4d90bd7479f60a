//! Nothing is left behind, however the tests end: a process of its own waits for this one to be gone, also by SIGKILL,
//! and then takes down what is written on its list.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};

/// The binary under test.
pub(crate) const HALYARD: &str = env!("CARGO_BIN_EXE_halyard");

/// Reads its list until the tests are gone. A process is ended only if it still is what it was.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
clusters=
proxies=
servers=
mounts=
while read -r kind one two; do
    case $kind in
        cluster) clusters="$clusters $one" ;;
        proxy) proxies="$proxies $one:$two" ;;
        server) servers="$servers $one" ;;
        mount) mounts="$mounts $one" ;;
    esac
done
for proxy in $proxies; do
    pid=${proxy%%:*}
    if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "${proxy#*:}"; then kill -9 "$pid"; fi
done
for dir in $servers; do
    # An immediate shutdown; nothing of it is kept.
    if pid=$(head -n 1 "$dir/postmaster.pid" 2>/dev/null) &&
        tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$dir"; then
        kill -QUIT "$pid"
        while [ -e "/proc/$pid" ]; do sleep 0.1; done
    fi
done
# Servers may still be in there: it goes with the last of them.
for dir in $mounts; do umount --lazy "$dir"; done
for dir in $clusters; do "$0" cluster down --purge --dir "$dir"; done
rm -rf -- "$1"
"#;

struct Guardian {
    folder: PathBuf,
    list: Mutex<ChildStdin>,
    /// It outlives this process, so nobody waits for it.
    _process: Child,
}

static GUARDIAN: LazyLock<Guardian> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/var/tmp/halyard-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // The servers' own user goes through it.
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    let mut process = Command::new("/bin/sh")
        .args(["-c", SCRIPT, HALYARD])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for the tests; it has work to do then.
        .process_group(0)
        .spawn()
        .unwrap();
    let list = process.stdin.take().unwrap().into();
    Guardian {
        folder,
        list,
        _process: process,
    }
});

/// A folder of this run for everything that tests write.
pub(crate) fn folder() -> &'static Path {
    &GUARDIAN.folder
}

/// Has the cluster in `dir` taken down at the end.
pub(crate) fn guard_cluster(dir: &Path) {
    note(&format!("cluster {}", dir.display()));
}

/// Has the proxy that runs with `config` ended at the end, should it still run.
pub(crate) fn guard_proxy(pid: u32, config: &Path) {
    note(&format!("proxy {pid} {}", config.display()));
}

/// Puts a line on the list: `cluster` and its folder, `proxy`, its number and its configuration, `server` and the
/// data directory of a single one, or `mount` and where a file system is mounted.
pub(crate) fn note(line: &str) {
    writeln!(GUARDIAN.list.lock().unwrap(), "{line}").unwrap();
}
