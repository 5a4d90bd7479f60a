//! What a client asked for when it connected, and how a backend is brought to it.

use std::sync::Arc;

/// Settings from the startup packet, by lower-case name, sorted. Sessions with the same ones share them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pairs: Vec<(String, String)>,
}

impl Settings {
    /// Sorts and folds names; a name given twice has its last value, as in the server.
    pub fn new(mut given: Vec<(String, String)>) -> Self {
        for (name, _) in &mut given {
            name.make_ascii_lowercase();
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(given.len());
        for (name, value) in given {
            match pairs.iter_mut().find(|(known, _)| *known == name) {
                Some(pair) => pair.1 = value,
                None => pairs.push((name, value)),
            }
        }
        pairs.sort();
        Self { pairs }
    }

    /// Names and values, sorted by name.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The statements that turn a backend with settings `from` into one with these; none where there is no
    /// difference.
    ///
    /// `set_config` is used instead of SET, as it takes a value the way the startup packet does: SET would take
    /// `a, b` for one element of a list. Its strings are written as `E''`, which reads the same whatever
    /// `standard_conforming_strings` is.
    pub fn statements_from(&self, from: &Arc<Settings>) -> Option<String> {
        let mut sql = String::new();
        for (name, _) in from.pairs() {
            if self.value(name).is_none() {
                sql.push_str("RESET ");
                push_identifier(&mut sql, name);
                sql.push(';');
            }
        }
        for (name, value) in &self.pairs {
            if from.value(name) != Some(value) {
                sql.push_str("SELECT pg_catalog.set_config(");
                push_literal(&mut sql, name);
                sql.push(',');
                push_literal(&mut sql, value);
                sql.push_str(",false);");
            }
        }
        (!sql.is_empty()).then_some(sql)
    }
}

/// A custom setting's name has dots between identifiers; each part is quoted by itself.
fn push_identifier(sql: &mut String, name: &str) {
    for (index, part) in name.split('.').enumerate() {
        if index > 0 {
            sql.push('.');
        }
        sql.push('"');
        sql.push_str(&part.replace('"', "\"\""));
        sql.push('"');
    }
}

fn push_literal(sql: &mut String, text: &str) {
    sql.push_str("E'");
    for character in text.chars() {
        match character {
            '\'' => sql.push_str("''"),
            '\\' => sql.push_str("\\\\"),
            '\0' => {}
            other => sql.push(other),
        }
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Arc<Settings> {
        Arc::new(Settings::new(
            pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        ))
    }

    #[test]
    fn only_the_difference_is_applied() {
        let from = settings(&[
            ("application_name", "a"),
            ("TimeZone", "UTC"),
            ("work_mem", "4MB"),
        ]);
        let to = settings(&[("application_name", "b"), ("timezone", "UTC")]);
        assert_eq!(
            to.statements_from(&from).unwrap(),
            "RESET \"work_mem\";SELECT pg_catalog.set_config(E'application_name',E'b',false);"
        );
        assert_eq!(to.statements_from(&to), None);
    }

    /// A peer replayed values unescaped: a value that ends its own string would have run as SQL.
    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let to = settings(&[("application_name", "x'); drop table t; --\\")]);
        assert_eq!(
            to.statements_from(&Arc::default()).unwrap(),
            "SELECT pg_catalog.set_config(E'application_name',E'x''); drop table t; --\\\\',false);"
        );
    }
}
