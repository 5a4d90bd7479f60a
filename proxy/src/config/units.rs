//! Durations and sizes as PostgreSQL writes them: a number and a unit, `250ms`, `1.5 s`, `64kB`.
//!
//! The units are those of the manual, "Parameter Names and Values" (config-setting-names-values): they are
//! case sensitive, and memory is counted in steps of 1024.

use std::time::Duration;

use super::errors::did_you_mean;

/// A unit's name and how many of the smallest unit it holds.
type Units = &'static [(&'static str, u64)];

const TIME: Units = &[
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

const MEMORY: Units = &[
    ("B", 1),
    ("kB", 1 << 10),
    ("MB", 1 << 20),
    ("GB", 1 << 30),
    ("TB", 1 << 40),
];

/// Reads a duration, exact to the microsecond. The error is a sentence without the offending text.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    quantity(text, TIME).map(Duration::from_micros)
}

/// Reads a size in bytes. The error is a sentence without the offending text.
pub(super) fn size(text: &str) -> Result<u64, String> {
    quantity(text, MEMORY)
}

/// Writes a duration in its largest whole unit.
pub(super) fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), TIME)
}

/// Writes a size in its largest whole unit.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, MEMORY)
}

fn quantity(text: &str, units: Units) -> Result<u64, String> {
    let text = text.trim();
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..number_end], text[number_end..].trim_start());
    if number.is_empty() {
        return Err("a number with a unit is wanted".to_owned());
    }
    let Some(&(_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(wrong_unit(unit, units));
    };
    scaled(number, factor).ok_or_else(|| "the number is malformed or too large".to_owned())
}

/// `number * factor`, rounded down; none where `number` is no decimal number or the product too large.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u128>().ok()?.checked_mul(u128::from(factor))? / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

fn wrong_unit(unit: &str, units: Units) -> String {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let known = names.join(", ");
    if unit.is_empty() {
        format!("the unit is missing (units are {known})")
    } else {
        format!(
            "the unit is not known (units are {known}){}",
            did_you_mean(unit, names)
        )
    }
}

fn show(amount: u64, units: Units) -> String {
    let fits = |&&(_, factor): &&(&str, u64)| amount.is_multiple_of(factor);
    match units.iter().rev().find(fits) {
        Some((name, factor)) if amount > 0 => format!("{}{name}", amount / factor),
        _ => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests;
