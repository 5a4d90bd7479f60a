//! What is checked before anything is changed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::error::{ClusterError, Result};
use crate::layout::{HOST, Layout, Ports, Service};
use crate::owner::Owner;
use crate::process;

/// Free space for a cluster of the usual size: seven servers of 30 to 60 MiB each, their WAL under load (512 MiB
/// each at most) counted in half.
const SPACE_MIB: u64 = 2048;

/// Fails for the first port of the plan that something else listens on, naming both.
pub(crate) fn ports_are_free(ports: &Ports, with_proxy: bool) -> Result<()> {
    let servers = ports
        .servers()
        .map(|service| (ports.of(service), service.to_string()));
    let proxy = [
        (ports.of(Service::Proxy), "the proxy".to_owned()),
        (ports.http, "the proxy's HTTP".to_owned()),
    ];
    for (port, service) in servers.chain(proxy.into_iter().filter(|_| with_proxy)) {
        port_is_free(port, service)?;
    }
    Ok(())
}

/// Fails when something listens on `port`, which is meant for `service`.
pub(crate) fn port_is_free(port: u16, service: String) -> Result<()> {
    match TcpListener::bind((HOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(ClusterError::PortTaken {
            port,
            service,
            holder: process::port_holder(port),
        }),
        Err(source) => Err(ClusterError::Io {
            what: format!("cannot listen on port {port} (for {service})"),
            source,
        }),
    }
}

/// Fails when the file system has no room for a cluster.
pub(crate) fn disk_has_room(path: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(path).map_err(|error| ClusterError::io("look at", path)(error.into()))?;
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024);
    if free_mib < SPACE_MIB {
        return Err(ClusterError::NoSpace {
            path: path.to_path_buf(),
            free_mib,
            needed_mib: SPACE_MIB,
        });
    }
    Ok(())
}

/// Makes the cluster's folder where it is not there, and returns it without symbolic links. Fails when it holds
/// something else, belongs to a stranger, or cannot be entered by the servers' user.
pub(crate) fn claim_folder(owner: &Owner, wanted: &Path) -> Result<Layout> {
    let bad = |reason: &str| ClusterError::BadFolder {
        path: wanted.to_path_buf(),
        reason: reason.to_owned(),
    };
    let absolute = std::path::absolute(wanted).map_err(ClusterError::io("resolve", wanted))?;
    if let Some(parent) = absolute.parent() {
        std::fs::create_dir_all(parent).map_err(ClusterError::io("make", parent))?;
    }
    if absolute.exists() && !is_empty(&absolute)? {
        let layout = Layout::new(canonical(&absolute)?);
        let ours = layout.record().exists() || layout.incomplete().exists();
        if !ours {
            return Err(bad(
                "it holds something else; name an empty or a new one with --dir",
            ));
        }
    }
    if absolute.exists() && !owner.trusts(&absolute) {
        return Err(bad("it belongs to somebody else"));
    }
    owner.make_dir(&absolute)?;
    let layout = Layout::new(canonical(&absolute)?);
    if !owner.may("-x", layout.dir()) {
        // Removed again only if it is empty, as it is when it was made just now.
        let _ = std::fs::remove_dir(layout.dir());
        let user = &owner.name;
        return Err(bad(&format!(
            "the user {user}, who runs the servers, cannot reach it; choose another with --dir"
        )));
    }
    if !layout.sockets_fit() {
        let _ = std::fs::remove_dir(layout.dir());
        return Err(bad(
            "its path is too long for unix sockets; choose a shorter one with --dir",
        ));
    }
    Ok(layout)
}

/// The folder of an existing cluster.
pub(crate) fn existing_folder(wanted: &Path) -> Result<Layout> {
    let none = || ClusterError::NoCluster {
        path: wanted.to_path_buf(),
    };
    let layout = Layout::new(wanted.canonicalize().map_err(|_| none())?);
    let there = layout.record().exists() || layout.incomplete().exists();
    there.then_some(layout).ok_or_else(none)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(ClusterError::io("resolve", path))
}

fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(path).map_err(ClusterError::io("read", path))?;
    // A lock left by a command that found nothing to do is nothing.
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == ".lock")))
}

#[cfg(test)]
mod tests;
