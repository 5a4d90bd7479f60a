//! Log lines: one event a line on standard error, as text or JSON.
//!
//! Secrets never get here: [`Secret`](crate::config::Secret) does not show itself, and the text of statements and row
//! data are not logged.

use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;

use tracing::Subscriber;
use tracing::subscriber::{SetGlobalDefaultError, set_global_default};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{General, LogFormat};

/// The variable that takes the place of `general.log_level` for one run, by its usual name.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is no filter.
    #[error("{origin} is no log filter: {source}")]
    Filter {
        /// Who said so: the setting or the environment variable.
        origin: &'static str,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something in this process logs already.
    #[error("logging has begun already")]
    Begun(#[from] SetGlobalDefaultError),
}

/// Begins to log as configured, panics included, for the whole process. Call it once, before other threads run.
///
/// # Errors
/// See [`LoggingError`].
pub fn install(general: &General) -> Result<(), LoggingError> {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let filter = filter(general, std::env::var(FILTER_VARIABLE).ok())?;
    set_global_default(subscriber(general.log_format, filter, io::stderr, colours))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn filter(general: &General, variable: Option<String>) -> Result<EnvFilter, LoggingError> {
    let (origin, level) = match variable {
        Some(level) if !level.is_empty() => (FILTER_VARIABLE, level),
        _ => ("general.log_level", general.log_level.clone()),
    };
    EnvFilter::try_new(level).map_err(|source| LoggingError::Filter { origin, source })
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What cannot be written is lost: to say so on a standard error that is closed, or on a disk that is full, would panic.
    let builder = fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => Box::new(builder.with_writer(OneLine(writer)).finish()),
        LogFormat::Json => Box::new(builder.with_writer(writer).json().flatten_event(true).finish()),
    }
}

/// A writer for events in text form, which may hold line feeds from a peer's words: they are written as `\n`, so that
/// nobody can forge an event. JSON escapes them itself.
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

impl<W: Write> Write for OneLine<W> {
    /// Takes a whole event, which is how the subscriber hands them on.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if !line.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            return self.0.write_all(event).map(|()| event.len());
        }
        let mut escaped = Vec::with_capacity(event.len() + 16);
        for &byte in line {
            match byte {
                b'\n' => escaped.extend_from_slice(b"\\n"),
                b'\r' => escaped.extend_from_slice(b"\\r"),
                byte => escaped.push(byte),
            }
        }
        escaped.push(b'\n');
        self.0.write_all(&escaped).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Logs a panic as one event instead of Rust's lines of text. The thread goes on to unwind.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Off unless RUST_BACKTRACE asks for it, as without this hook.
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    tracing::error!(
        thread,
        location,
        backtrace,
        "panic, which is a bug in Halyard: {message}"
    );
}

#[cfg(test)]
mod tests;
