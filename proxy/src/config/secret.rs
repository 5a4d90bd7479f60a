//! Secrets, and the files that hold them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Longest secret that a file may hold, in bytes: PostgreSQL's own limit is 64 kB less a little.
const SECRET_SIZE_MAX: u64 = 60 * 1024;

/// A text that shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for those who must use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads the secret that is the first line of `path`. The error is a sentence without the content.
pub(super) fn read_secret(path: &Path) -> Result<Secret, String> {
    let text = read_limited(path, SECRET_SIZE_MAX)?;
    match text.lines().next() {
        None | Some("") => Err(format!(
            "\"{}\" has no password in its first line",
            path.display()
        )),
        Some(line) => Ok(Secret::new(line)),
    }
}

/// Reads a whole text file of at most `size_max` bytes: a regular one, since a pipe may never have anything to say. The
/// error is a sentence that names the file.
pub(super) fn read_limited(path: &Path, size_max: u64) -> Result<String, String> {
    let told = |error: io::Error| format!("\"{}\" cannot be read: {error}", path.display());
    if !fs::metadata(path).map_err(told)?.is_file() {
        return Err(format!("\"{}\" is not a regular file", path.display()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(size_max + 1).read_to_end(&mut bytes))
        .map_err(told)?;
    if bytes.len() as u64 > size_max {
        return Err(format!("\"{}\" is larger than {size_max} bytes", path.display()));
    }
    String::from_utf8(bytes).map_err(|_| format!("\"{}\" is not UTF-8", path.display()))
}

/// Who besides its owner may use a file that holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Nobody; or root's file that one group may read, as PostgreSQL allows for its keys.
    Private,
    /// Others may read it.
    Readable,
    /// Others may change it.
    Writable,
}

/// How far `path` is open to others; `Private` where that cannot be told.
pub(super) fn exposure(path: &Path) -> Exposure {
    fs::metadata(path).map_or(Exposure::Private, |metadata| {
        exposure_of(metadata.mode(), metadata.uid())
    })
}

/// The rule of PostgreSQL's `check_ssl_key_file_permissions` (src/backend/libpq/be-secure-common.c):
/// 0600 or less, or 0640 or less where root owns the file.
fn exposure_of(mode: u32, owner: u32) -> Exposure {
    let others = if owner == 0 { mode & 0o027 } else { mode & 0o077 };
    if others & 0o022 != 0 {
        Exposure::Writable
    } else if others != 0 {
        Exposure::Readable
    } else {
        Exposure::Private
    }
}

#[cfg(test)]
mod tests;
