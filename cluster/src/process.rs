//! The cluster's processes, found in `/proc` and proved to be ours before anything is sent to them.
//!
//! Recorded pids go stale: pg_autoctl restarts servers, and the kernel uses numbers again. So membership is
//! read off the process itself. Everything that `up` starts carries the cluster's folder and the service's
//! name in its environment ([`CLUSTER_MARK`], [`SERVICE_MARK`]) and so do its children; a PostgreSQL backend
//! overwrites its environment to show its title, but its working directory is its PGDATA. A signal goes
//! through a pidfd opened *before* membership is read, so it cannot reach a later owner of the number.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::layout::{Layout, Service};

/// Environment variable that holds the cluster's folder in every process of the cluster.
pub(crate) const CLUSTER_MARK: &str = "HALYARD_CLUSTER_PROCESS";
/// Environment variable that holds the service's name beside [`CLUSTER_MARK`].
pub(crate) const SERVICE_MARK: &str = "HALYARD_CLUSTER_SERVICE";

/// How often processes are looked at again while they are being ended or frozen.
const RESCAN_INTERVAL: Duration = Duration::from_millis(20);
/// How long processes may take to be gone after SIGKILL, or to stop after SIGSTOP. A process in an
/// uninterruptible disk wait takes as long as the disk.
pub(crate) const SIGNAL_DEADLINE: Duration = Duration::from_secs(15);

/// What a process does within its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// pg_autoctl, which would start the server again.
    Keeper,
    /// The first process of a PostgreSQL server.
    Postmaster,
    /// Everything else: backends, background processes, pg_basebackup, the proxy.
    Other,
}

/// A process of this cluster, as it was when looked at.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its number.
    pub(crate) pid: u32,
    /// Which service it belongs to.
    pub(crate) service: Service,
    /// What it does there.
    pub(crate) part: Part,
    /// Whether it is stopped (SIGSTOP).
    pub(crate) frozen: bool,
    parent: u32,
    handle: OwnedFd,
}

impl Member {
    /// Sends a signal to this very process. A process that has ended meanwhile is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        // Only ESRCH (gone) and EPERM (became another user's by a set-uid program, which none of ours is) exist.
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

/// All live processes of the cluster.
pub(crate) fn members(layout: &Layout) -> Vec<Member> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| member(layout, pid))
        .collect()
}

/// The live processes of one service.
pub(crate) fn members_of(layout: &Layout, service: Service) -> Vec<Member> {
    let mut found = members(layout);
    found.retain(|member| member.service == service);
    found
}

/// The member whose death or stop is the service's: the keeper's parent process, the postmaster of a
/// read-only replica, the proxy.
pub(crate) fn leader(members: &[Member], service: Service) -> Option<&Member> {
    let wanted = match service {
        Service::Ro(_) => Part::Postmaster,
        Service::Proxy => Part::Other,
        Service::Monitor | Service::Node(_) => Part::Keeper,
    };
    let own = |member: &&Member| member.service == service && member.part == wanted;
    // pg_autoctl forks its parts: the one whose parent is not itself a keeper leads them.
    members.iter().filter(own).find(|candidate| {
        !members
            .iter()
            .filter(own)
            .any(|member| member.pid == candidate.parent)
    })
}

/// Reads whether `pid` is one of ours. The pidfd comes first: see the module's page.
fn member(layout: &Layout, pid: u32) -> Option<Member> {
    let handle = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = Status::parse(&std::fs::read_to_string(proc.join("stat")).ok()?)?;
    if status.is_dead() {
        return None;
    }
    let exe = undeleted(std::fs::read_link(proc.join("exe")).ok()?);
    let program = exe.file_name().unwrap_or_default().to_string_lossy();
    let environment = std::fs::read(proc.join("environ")).unwrap_or_default();
    let cwd = std::fs::read_link(proc.join("cwd")).ok().map(undeleted);
    let service = marked_service(layout.dir(), &environment).or_else(|| {
        let cwd = cwd.as_deref().filter(|_| program == "postgres")?;
        service_of_data(layout, cwd)
    })?;
    let part = match &*program {
        "pg_autoctl" => Part::Keeper,
        "postgres" if postmaster_pid(&layout.data(service)) == Some(pid) => Part::Postmaster,
        _ => Part::Other,
    };
    Some(Member {
        pid,
        service,
        part,
        frozen: status.is_stopped(),
        parent: status.parent,
        handle,
    })
}

/// The service that a process's environment names, if it names this cluster.
fn marked_service(dir: &Path, environment: &[u8]) -> Option<Service> {
    let value = |name: &str| {
        environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(CLUSTER_MARK)? != dir.as_os_str().as_bytes() {
        return None;
    }
    OsStr::from_bytes(value(SERVICE_MARK)?).to_str()?.parse().ok()
}

/// The service whose PGDATA is `path`.
fn service_of_data(layout: &Layout, path: &Path) -> Option<Service> {
    let service: Service = path.parent()?.file_name()?.to_str()?.parse().ok()?;
    (layout.data(service) == path).then_some(service)
}

/// A path as it was: the kernel appends ` (deleted)` to what has been removed or, like a program in an upgrade,
/// replaced.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(was) => PathBuf::from(OsStr::from_bytes(was)),
        None => path,
    }
}

/// The pid in `postmaster.pid`, which says who claims the folder, not that it lives.
pub(crate) fn postmaster_pid(data: &Path) -> Option<u32> {
    std::fs::read_to_string(data.join("postmaster.pid"))
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()
}

/// What is used of `/proc/PID/stat`, see proc(5).
#[derive(Debug, PartialEq, Eq)]
struct Status {
    state: char,
    parent: u32,
}

impl Status {
    /// The program's name stands in parentheses and may hold spaces and parentheses itself: fields count
    /// from the last one.
    fn parse(stat: &str) -> Option<Status> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Status {
            state,
            parent: fields.next()?.parse().ok()?,
        })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// Whether a whole service is stopped (SIGSTOP), `false` when nothing of it runs.
pub(crate) fn is_frozen(members: &[Member], service: Service) -> bool {
    let mut own = members
        .iter()
        .filter(|member| member.service == service)
        .peekable();
    own.peek().is_some() && own.all(|member| member.frozen)
}

/// Ends every process that `wanted` picks, by SIGKILL, keepers first so that nothing is started again.
/// Returns how many are still there at the deadline.
pub(crate) async fn kill(layout: &Layout, wanted: impl Fn(&Member) -> bool) -> usize {
    let deadline = Instant::now() + SIGNAL_DEADLINE;
    loop {
        let mut found = members(layout);
        found.retain(&wanted);
        if found.is_empty() || Instant::now() >= deadline {
            return found.len();
        }
        found.sort_by_key(|member| member.part != Part::Keeper);
        for member in &found {
            member.signal(Signal::KILL);
        }
        tokio::time::sleep(RESCAN_INTERVAL).await;
    }
}

/// Stops every process of a service where it stands, keepers first. Returns whether all of them stopped.
pub(crate) async fn freeze(layout: &Layout, service: Service) -> bool {
    let deadline = Instant::now() + SIGNAL_DEADLINE;
    loop {
        let mut running = members_of(layout, service);
        running.retain(|member| !member.frozen);
        if running.is_empty() || Instant::now() >= deadline {
            return running.is_empty();
        }
        running.sort_by_key(|member| member.part != Part::Keeper);
        for member in &running {
            member.signal(Signal::STOP);
        }
        tokio::time::sleep(RESCAN_INTERVAL).await;
    }
}

/// Lets a frozen service go on, keepers last. Returns how many processes were woken.
pub(crate) fn thaw(layout: &Layout, service: Service) -> usize {
    let mut frozen = members_of(layout, service);
    frozen.retain(|member| member.frozen);
    frozen.sort_by_key(|member| member.part == Part::Keeper);
    for member in &frozen {
        member.signal(Signal::CONT);
    }
    frozen.len()
}

/// Who listens on a port of this machine, as ` by NAME (pid N)`, or nothing where that cannot be seen.
pub(crate) fn port_holder(port: u16) -> String {
    let Some(inode) = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, port))
    else {
        return String::new();
    };
    let socket = format!("socket:[{inode}]");
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return String::new();
    };
    for pid in entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        let holds = |entry: std::fs::DirEntry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
        };
        if descriptors.flatten().any(holds) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return format!(" by {} (pid {pid})", name.trim());
        }
    }
    String::new()
}

/// The inode of the socket that listens on `port`, from a table of `/proc/net/tcp`'s form.
fn listening_inode(table: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests;
