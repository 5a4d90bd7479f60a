//! The unprivileged user that the servers run as, and files that belong to it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::OFlags;

use crate::error::{ClusterError, Result};

/// PostgreSQL refuses to run as root: this user runs it then.
const UNPRIVILEGED: &str = "postgres";

/// Who runs the servers and owns the cluster's folder.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// The user's name, which PostgreSQL's `peer` authentication sees.
    pub(crate) name: String,
    uid: u32,
    gid: u32,
    /// Whether this process is root and must drop to that user.
    drops: bool,
}

impl Owner {
    /// `postgres` for root, otherwise whoever runs this.
    pub(crate) fn current() -> Result<Owner> {
        let drops = rustix::process::geteuid().is_root();
        let ask = |flag: &str| -> Result<String> {
            let mut command = Command::new("id");
            command.arg(flag).args(drops.then_some(UNPRIVILEGED));
            let output = command
                .output()
                .map_err(ClusterError::io("run", Path::new("id")))?;
            if !output.status.success() {
                return Err(ClusterError::Missing {
                    what: format!("the user {UNPRIVILEGED} (PostgreSQL)"),
                });
            }
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let number = |text: String| {
            text.parse()
                .map_err(|_| ClusterError::Refused(format!("`id` answers {text:?} instead of a number")))
        };
        Ok(Owner {
            name: ask("-un")?,
            uid: number(ask("-u")?)?,
            gid: number(ask("-g")?)?,
            drops,
        })
    }

    /// Makes `command` run as this user, without root's groups.
    pub(crate) fn apply(&self, command: &mut tokio::process::Command) {
        if self.drops {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Whether this user may do `access` (`-x`, `-w`, …, as in test(1)) to `path`, all folders above it included.
    pub(crate) fn may(&self, access: &str, path: &Path) -> bool {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("test");
        command.arg(access).arg(path).current_dir("/");
        if self.drops {
            command.uid(self.uid).gid(self.gid);
        }
        command.status().is_ok_and(|status| status.success())
    }

    /// The cluster's folder when none is named: `/var/lib/halyard/cluster` for root (a home folder cannot be
    /// entered by the servers' user), `$XDG_STATE_HOME/halyard/cluster` for anybody else.
    pub(crate) fn default_dir(&self) -> Result<PathBuf> {
        if self.drops {
            return Ok(PathBuf::from("/var/lib/halyard/cluster"));
        }
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|state| state.join("halyard/cluster"))
            .ok_or_else(|| {
                ClusterError::Refused("neither XDG_STATE_HOME nor HOME is set: name a --dir".into())
            })
    }

    /// Makes a folder that only this user may enter.
    pub(crate) fn make_dir(&self, path: &Path) -> Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(ClusterError::io("make", path)(error));
            }
            _ => {}
        }
        self.give(path, 0o700)
    }

    /// Writes a file whole, mode 0600, by renaming it into place: a reader sees the old or the new one.
    pub(crate) fn write(&self, path: &Path, content: &str) -> Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(ClusterError::io("write", &new))?;
        file.write_all(content.as_bytes())
            .map_err(ClusterError::io("write", &new))?;
        self.take(&file, &new, 0o600)?;
        std::fs::rename(&new, path).map_err(ClusterError::io("write", path))
    }

    /// Opens a log for a child to append to. Root does not follow a link that the servers' user may have laid.
    pub(crate) fn open_log(&self, path: &Path) -> Result<File> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(flag(OFlags::NOFOLLOW))
            .open(path)
            .map_err(ClusterError::io("open", path))?;
        self.take(&file, path, 0o600)?;
        Ok(file)
    }

    /// Hands an existing file over to this user, with this mode.
    pub(crate) fn give(&self, path: &Path, mode: u32) -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flag(OFlags::NOFOLLOW))
            .open(path)
            .map_err(ClusterError::io("open", path))?;
        self.take(&file, path, mode)
    }

    fn take(&self, file: &File, path: &Path, mode: u32) -> Result<()> {
        if self.drops {
            std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))
                .map_err(ClusterError::io("change the owner of", path))?;
        }
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(ClusterError::io("change the mode of", path))
    }

    /// Whether a folder that exists already belongs to this user or to whoever runs this command, and not to a
    /// stranger who could read what is put into it.
    pub(crate) fn trusts(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.uid() == self.uid || (self.drops && metadata.uid() == 0))
    }
}

/// An open(2) flag in the type that the standard library takes.
fn flag(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}
