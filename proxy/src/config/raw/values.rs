//! The values that settings take: texts, words, numbers, and quantities with a unit.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::Section;
use crate::config::errors::did_you_mean;
use crate::config::units;

impl<'d, 't> Section<'d, 't> {
    /// A text, or none where the key is absent.
    pub(in crate::config) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) if !text.is_empty() && !text.contains('\0') => Some(text.to_string()),
            DeValue::String(_) => {
                self.error(
                    key,
                    "an empty text, or one with a zero character, has no meaning here",
                );
                None
            }
            _ => {
                self.wrong_type(key, "a text in quotes", value);
                None
            }
        }
    }

    /// A text that has no default.
    pub(in crate::config) fn required_text(&mut self, key: &'static str) -> String {
        let written = self.has(key);
        let text = self.text(key);
        if !written {
            self.error(key, "is required and has no default");
        }
        text.unwrap_or_default()
    }

    /// A text that no error may repeat.
    pub(in crate::config) fn hidden_text(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)?.get_ref() {
            DeValue::String(text) if !text.is_empty() && !text.contains('\0') => Some(text.to_string()),
            _ => {
                self.error(
                    key,
                    "must be a text in quotes, not empty and without a zero character",
                );
                None
            }
        }
    }

    /// A list of texts; empty where the key is absent.
    pub(in crate::config) fn texts(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, "a list of texts", value);
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) if !text.is_empty() => texts.push(text.to_string()),
                _ => self.wrong_type(key, "a list of texts: one item is no text, or empty", value),
            }
        }
        texts
    }

    /// `true` or `false`.
    pub(in crate::config) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else {
            return default;
        };
        if let DeValue::Boolean(flag) = value.get_ref() {
            return *flag;
        }
        self.wrong_type(key, "true or false", value);
        default
    }

    /// A whole number within `range`.
    pub(in crate::config) fn number<N>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<N>,
        default: N,
    ) -> N
    where
        N: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        self.number_or_none(key, range).unwrap_or(default)
    }

    /// A whole number within `range`, or none where the key is absent.
    pub(in crate::config) fn number_or_none<N>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<N>,
    ) -> Option<N>
    where
        N: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let value = self.value(key)?;
        let DeValue::Integer(digits) = value.get_ref() else {
            self.wrong_type(key, "a whole number", value);
            return None;
        };
        let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok();
        let number = number
            .and_then(|number| N::try_from(number).ok())
            .filter(|number| range.contains(number));
        if number.is_none() {
            self.out_of_range(key, value, range.start(), range.end());
        }
        number
    }

    fn out_of_range(&self, key: &str, value: &Spanned<DeValue<'_>>, least: impl Display, most: impl Display) {
        let found = self.excerpt(value.span());
        self.error(
            key,
            format_args!("{found} is outside the valid range ({least} .. {most})"),
        );
    }

    /// A duration with its unit, within `range`.
    pub(in crate::config) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(value) = self.value(key) else {
            return default;
        };
        self.duration_in(key, value, &range).unwrap_or(default)
    }

    /// A duration with its unit, within `range`, or `"off"`.
    pub(in crate::config) fn duration_or_off(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let Some(value) = self.value(key) else {
            return default;
        };
        if is_off(value) {
            return None;
        }
        self.duration_in(key, value, &range)
    }

    fn duration_in(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = self.quantity(key, value, "a duration such as \"1.5s\"", units::duration)?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let (least, most) = (
            units::show_duration(*range.start()),
            units::show_duration(*range.end()),
        );
        self.out_of_range(key, value, least, most);
        None
    }

    /// A size with its unit, in bytes, within `range`.
    pub(in crate::config) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> usize {
        let size = self
            .value(key)
            .and_then(|value| self.size_in(key, value, &range))
            .unwrap_or(default);
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// A size with its unit, in bytes, within `range`, or `"off"`.
    pub(in crate::config) fn size_or_off(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Option<u64> {
        let Some(value) = self.value(key) else {
            return default;
        };
        if is_off(value) {
            return None;
        }
        self.size_in(key, value, &range)
    }

    fn size_in(&self, key: &str, value: &Spanned<DeValue<'_>>, range: &RangeInclusive<u64>) -> Option<u64> {
        let size = self.quantity(key, value, "a size such as \"64kB\"", units::size)?;
        if range.contains(&size) {
            return Some(size);
        }
        self.out_of_range(
            key,
            value,
            units::show_size(*range.start()),
            units::show_size(*range.end()),
        );
        None
    }

    fn quantity<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let found = self.excerpt(value.span());
        match value.get_ref() {
            DeValue::String(text) => read(text)
                .map_err(|reason| self.error(key, format_args!("{found} is not {wanted}: {reason}")))
                .ok(),
            DeValue::Integer(_) => {
                self.error(
                    key,
                    format_args!("{found} has no unit: write {wanted}, in quotes"),
                );
                None
            }
            _ => {
                self.wrong_type(key, wanted, value);
                None
            }
        }
    }

    /// One word out of `choices`.
    pub(in crate::config) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        self.choice_or_none(key, choices).unwrap_or(default)
    }

    /// One word out of `choices`, or none where the key is absent.
    pub(in crate::config) fn choice_or_none<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let value = self.value(key)?;
        let words = choices.iter().map(|(word, _)| *word);
        let written = match value.get_ref() {
            DeValue::String(text) => text.as_ref(),
            _ => "",
        };
        let chosen = choices
            .iter()
            .find(|(word, _)| *word == written)
            .map(|(_, choice)| *choice);
        if chosen.is_none() {
            let found = self.excerpt(value.span());
            let all = words
                .clone()
                .map(|word| format!("\"{word}\""))
                .collect::<Vec<_>>()
                .join(", ");
            let hint = did_you_mean(written, words);
            self.error(key, format_args!("{found} is not one of {all}{hint}"));
        }
        chosen
    }
}

/// Whether a value says that something is switched off.
fn is_off(value: &Spanned<DeValue<'_>>) -> bool {
    matches!(value.get_ref(), DeValue::String(text) if text == "off")
}
