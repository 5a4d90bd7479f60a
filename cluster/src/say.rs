//! What the commands print. Nobody may be there to read it any more (`halyard cluster status | head -1`), or the disk may be
//! full: that ends nothing that is under way, unlike with `println!`, which panics.

use std::fmt::Arguments;
use std::io::Write;

/// Prints to standard output, if it takes it.
pub(crate) fn out(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_fmt(text).and_then(|()| stdout.flush());
}

/// Prints to standard error, if it takes it.
pub(crate) fn err(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// As `println!`, but for a reader that is gone.
macro_rules! outln {
    ($($part:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($part)*))) };
}

/// As `eprintln!`, but for a reader that is gone.
macro_rules! errln {
    ($($part:tt)*) => { $crate::say::err(format_args!("{}\n", format_args!($($part)*))) };
}

pub(crate) use {errln, outln};
