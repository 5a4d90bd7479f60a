//! What a configuration refers to outside its own text: certificates, keys, and passwords in files or the environment.

use std::path::{Path, PathBuf};

use super::raw::Section;
use super::secret::{self, Exposure, Secret};

/// What a configuration refers to outside its own text.
pub(super) struct Outside<'a> {
    /// Relative paths start here: the configuration's own directory.
    pub(super) directory: &'a Path,
    pub(super) environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Outside<'_> {
    /// A path as written, seen from the configuration's directory.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }
}

/// Largest PEM file, in bytes.
const PEM_SIZE_MAX: u64 = 1 << 20;

/// Notes a PEM file that cannot be read or holds nothing of the kind. The text is not kept.
pub(super) fn check_pem(section: &Section<'_, '_>, key: &str, path: &Path) {
    if !section.has(key) {
        return; // Told already.
    }
    match secret::read_limited(path, PEM_SIZE_MAX) {
        Err(message) => section.error(key, message),
        Ok(text) if text.contains("-----BEGIN ") => {}
        Ok(_) => section.error(key, format_args!("\"{}\" is not a PEM file", path.display())),
    }
}

/// The ways to give a password; at most one of them in a section.
const PASSWORD_KEYS: [&str; 3] = ["password", "password_file", "password_env"];

/// The key by which this section gives its password.
fn password_key(section: &Section<'_, '_>) -> &'static str {
    PASSWORD_KEYS
        .into_iter()
        .find(|key| section.has(key))
        .unwrap_or(PASSWORD_KEYS[0])
}

/// `password`, `password_file` or `password_env`.
pub(super) fn password(section: &mut Section<'_, '_>, outside: &Outside<'_>) -> Option<Secret> {
    let mut given = PASSWORD_KEYS.into_iter().filter(|key| section.has(key));
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        section.error(second, format_args!("the password is given already by {first}"));
    }
    let inline = section.hidden_text("password").map(Secret::new);
    if inline.is_some() {
        section.note_secret();
    }
    let from_file = section
        .text("password_file")
        .and_then(|path| password_from_file(section, &outside.resolve(&path)));
    let from_environment = section.text("password_env").and_then(|name| {
        let value = (outside.environment)(&name).filter(|value| !value.is_empty());
        if value.is_none() {
            section.error(
                "password_env",
                format_args!("the environment variable \"{name}\" is not set, or empty"),
            );
        }
        value.map(Secret::new)
    });
    inline.or(from_file).or(from_environment)
}

fn password_from_file(section: &Section<'_, '_>, path: &Path) -> Option<Secret> {
    let secret = match secret::read_secret(path) {
        Ok(secret) => secret,
        Err(message) => {
            section.error("password_file", message);
            return None;
        }
    };
    match secret::exposure(path) {
        Exposure::Private => {}
        Exposure::Readable => {
            let message = "can be read by others than its owner: chmod 0600";
            section.warning("password_file", format_args!("\"{}\" {message}", path.display()));
        }
        Exposure::Writable => {
            let message = "can be changed by others than its owner: chmod 0600";
            section.error("password_file", format_args!("\"{}\" {message}", path.display()));
        }
    }
    Some(secret)
}

/// Notes a secret that begins like a SCRAM verifier and is none. PostgreSQL would take it as a plain password
/// (`get_password_type` in src/backend/libpq/crypt.c), which is never what was meant.
pub(super) fn check_verifier(section: &Section<'_, '_>, secret: &Secret) {
    let verifier = secret.reveal().strip_prefix("SCRAM-SHA-256$");
    if verifier.is_some_and(|verifier| is_scram_verifier(verifier).is_none()) {
        section.error(password_key(section), "the SCRAM-SHA-256 verifier is malformed");
    }
    // As PostgreSQL's get_password_type (src/backend/libpq/crypt.c) tells them.
    let digits = secret.reveal().strip_prefix("md5");
    let is_hash = |digits: &str| {
        digits.len() == 32
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if digits.is_some_and(|digits| !is_hash(digits)) {
        section.warning(
            password_key(section),
            "it begins as an md5 hash does and is none (\"md5\" and 32 hexadecimal digits in lower case), so it is taken for \
             the password itself",
        );
    }
}

/// Whether a text is `iterations:salt$StoredKey:ServerKey`, keys of 32 bytes each.
fn is_scram_verifier(text: &str) -> Option<()> {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let (head, keys) = text.split_once('$')?;
    let (iterations, salt) = head.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let decoded = |text: &str| BASE64_STANDARD.decode(text).ok();
    let is_key = |text: &str| decoded(text).is_some_and(|key| key.len() == 32);
    let counts = iterations.parse::<u32>().is_ok_and(|iterations| iterations > 0);
    (counts && !decoded(salt)?.is_empty() && is_key(stored_key) && is_key(server_key)).then_some(())
}
