//! What is wrong with a configuration: every finding at once, each with its place in the file.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Whether a configuration can be used in spite of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// It cannot be used.
    Error,
    /// It can, and somebody should look at it.
    Warning,
}

/// A place in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in that line.
    pub column: usize,
}

impl Place {
    /// The place of byte `offset` in `text`.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// One thing that is wrong, or looks wrong, with a configuration. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Error or warning.
    pub gravity: Gravity,
    /// Where; none where the file as a whole is meant.
    pub place: Option<Place>,
    /// Which setting, what it says, and what would be right, in one line.
    pub message: String,
}

/// A finding together with the file's name, as compilers print them: `file:line:column: error: …`.
struct InFile<'a>(&'a Path, &'a Finding);

impl fmt::Display for InFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.0.display())?;
        if let Some(place) = self.1.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        let gravity = match self.1.gravity {
            Gravity::Error => "error",
            Gravity::Warning => "warning",
        };
        write!(f, " {gravity}: {}", self.1.message)
    }
}

impl Finding {
    /// The finding as one line, headed by the file's name as compilers do.
    pub fn in_file<'a>(&'a self, file: &'a Path) -> impl fmt::Display + 'a {
        InFile(file, self)
    }
}

/// Why a configuration was refused: all errors, and the warnings met on the way, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file as it was named.
    pub file: PathBuf,
    /// At least one of them is an error.
    pub findings: Vec<Finding>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", finding.in_file(&self.file))?;
        }
        Ok(())
    }
}

/// Findings while they are being made, over the text that they are about.
#[derive(Debug)]
pub(super) struct Findings<'t> {
    text: &'t str,
    found: Vec<Finding>,
}

impl<'t> Findings<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// Adds an error at byte `at`, or about the whole file.
    pub(super) fn error(&mut self, at: Option<Range<usize>>, message: impl Into<String>) {
        self.add(Gravity::Error, at, message.into());
    }

    /// Adds a warning at byte `at`, or about the whole file.
    pub(super) fn warning(&mut self, at: Option<Range<usize>>, message: impl Into<String>) {
        self.add(Gravity::Warning, at, message.into());
    }

    fn add(&mut self, gravity: Gravity, at: Option<Range<usize>>, message: String) {
        let place = at.map(|span| Place::of(self.text, span.start));
        self.found.push(Finding {
            gravity,
            place,
            message,
        });
    }

    /// The line on which `span` begins.
    pub(super) fn line_of(&self, span: &Range<usize>) -> usize {
        Place::of(self.text, span.start).line
    }

    /// All findings, in the file's order; those about the whole file come first.
    pub(super) fn into_sorted(mut self) -> Vec<Finding> {
        self.found.sort_by_key(|finding| (finding.place, finding.gravity));
        self.found
    }
}

/// `; did you mean "x"?` where one of `known` is near enough to `word` to be meant, else nothing.
pub(super) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let lower = word.to_lowercase();
    let nearest = known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()),
                candidate,
            )
        })
        .min();
    match nearest {
        // A third of the letters may be wrong: enough for typing errors, too little for another word.
        Some((distance, candidate)) if distance <= candidate.chars().count() / 3 => {
            format!("; did you mean \"{candidate}\"?")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
