//! What is known of the cluster from one run of the process to the next: `general.state_file`.
//!
//! A process that begins knows nothing of what has been. Where only a primary of the past can be reached then, its own
//! answers say that it takes writes; that it was overtaken stands in this file.

use std::io::{self, Write};
use std::path::Path;

use halyard_health::{ClusterView, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

/// What is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) system_identifier: SystemIdentifier,
    /// The highest that any node has shown.
    pub(super) timeline: TimelineId,
}

/// The file's content. The identifier is a text: not every reader of JSON has 64 bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    system_identifier: String,
    timeline: u32,
}

impl Known {
    /// What a view shows, if it shows both.
    pub(super) fn of(view: &ClusterView) -> Option<Self> {
        Some(Self {
            system_identifier: view.system_identifier?,
            timeline: view.highest_timeline?,
        })
    }

    /// Reads the file; `None` if there is none yet.
    ///
    /// # Errors
    /// The system's reason, or that the file is none of these. Nobody goes on without it who has asked for it.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| named(path, &error))?,
        };
        let broken = |error: &dyn std::fmt::Display| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            named(path, &error)
        };
        let written: Written = serde_json::from_str(&text).map_err(|error| broken(&error))?;
        Ok(Some(Self {
            system_identifier: written
                .system_identifier
                .parse()
                .map_err(|error| broken(&error))?,
            timeline: TimelineId(written.timeline),
        }))
    }

    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn store(self, path: &Path) -> io::Result<()> {
        let written = Written {
            system_identifier: self.system_identifier.to_string(),
            timeline: self.timeline.0,
        };
        let text = serde_json::to_string(&written)?;
        let beside = path.with_extension("new");
        let write = || {
            let mut file = std::fs::File::create(&beside)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::rename(&beside, path)
        };
        write().map_err(|error: io::Error| named(path, &error))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let reason = format!("{}, the general.state_file: {error}", path.display());
    io::Error::new(error.kind(), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded_and_what_is_broken_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(Known::load(&path).unwrap(), None);
        let known = Known {
            system_identifier: SystemIdentifier(u64::MAX),
            timeline: TimelineId(12),
        };
        known.store(&path).unwrap();
        known.store(&path).unwrap();
        assert_eq!(Known::load(&path).unwrap(), Some(known));
        for broken in ["", "{}", "{\"system_identifier\": \"x\", \"timeline\": 1}"] {
            std::fs::write(&path, broken).unwrap();
            let error = Known::load(&path).unwrap_err().to_string();
            assert!(error.contains("general.state_file"), "{error}");
        }
    }
}
