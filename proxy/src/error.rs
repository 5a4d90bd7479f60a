//! What a client is told when something went wrong: PostgreSQL's ErrorResponse and NoticeResponse.
//!
//! Messages follow the manual, "Error and Notice Message Fields" (protocol-error-fields): severity twice
//! (localized `S`, never localized `V`), SQLSTATE, message, and optionally detail and hint.

use std::borrow::Cow;
use std::fmt;

/// A five-character SQLSTATE, named by PostgreSQL's condition names (errcodes.txt).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState { $($(#[$doc])* pub const $name: SqlState = SqlState(*$code);)* }
    };
}

conditions! {
    /// A warning of no particular kind.
    WARNING = b"01000";
    /// The connection to the server was lost.
    CONNECTION_FAILURE = b"08006";
    /// A statement's effect is unknown: its answer was lost.
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    /// The peer broke the protocol.
    PROTOCOL_VIOLATION = b"08P01";
    /// The server does not know what was asked of it.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// A setting cannot have that value.
    INVALID_PARAMETER_VALUE = b"22023";
    /// Wrong user or password, or not let in by the rules.
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    /// A wrong password (told for an unknown user alike).
    INVALID_PASSWORD = b"28P01";
    /// No transaction block is open.
    NO_ACTIVE_SQL_TRANSACTION = b"25P01";
    /// The open transaction block has failed.
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    /// A client was idle inside a transaction block for too long.
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    /// A write on a read-only node.
    READ_ONLY_SQL_TRANSACTION = b"25006";
    /// A prepared statement of that name does not exist.
    INVALID_SQL_STATEMENT_NAME = b"26000";
    /// A portal of that name does not exist.
    INVALID_CURSOR_NAME = b"34000";
    /// No such database.
    INVALID_CATALOG_NAME = b"3D000";
    /// The transaction was rolled back and may be tried again as a whole.
    SERIALIZATION_FAILURE = b"40001";
    /// A prepared statement of that name exists already.
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    /// A name that is Halyard's own.
    RESERVED_NAME = b"42939";
    /// A name that nothing can have.
    INVALID_NAME = b"42602";
    /// A statement that makes no sense.
    SYNTAX_ERROR = b"42601";
    /// The user may not do that.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// Nothing went wrong.
    SUCCESSFUL_COMPLETION = b"00000";
    /// The name of a parameter is not known.
    UNDEFINED_OBJECT = b"42704";
    /// A limit on connections was reached.
    TOO_MANY_CONNECTIONS = b"53300";
    /// A configured limit was reached.
    CONFIGURATION_LIMIT_EXCEEDED = b"53400";
    /// A fixed limit of the program was reached.
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    /// Something is not in the state that the request needs.
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    /// The statement was cancelled, by its user or by a time limit.
    QUERY_CANCELED = b"57014";
    /// An administrator ended the connection.
    ADMIN_SHUTDOWN = b"57P01";
    /// The server crashed.
    CRASH_SHUTDOWN = b"57P02";
    /// The server does not take connections now.
    CANNOT_CONNECT_NOW = b"57P03";
    /// The connection was idle for too long.
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// A bug of Halyard's own.
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code as text; `?????` where a peer sent something that is not ASCII.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad it is, in PostgreSQL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session lives on.
    Error,
    /// The session ends.
    Fatal,
    /// A notice that deserves attention.
    Warning,
    /// A notice.
    Notice,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }

    fn message_type(self) -> u8 {
        match self {
            Severity::Error | Severity::Fatal => b'E',
            Severity::Warning | Severity::Notice => b'N',
        }
    }
}

/// One error or notice, meant for a client. It never holds a secret or row data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How bad.
    pub severity: Severity,
    /// Which condition.
    pub sqlstate: SqlState,
    /// What went wrong, in one line without a final full stop, as PostgreSQL's style guide wants it.
    pub message: Cow<'static, str>,
    /// Which node, limit or value, in sentences.
    pub detail: Option<Cow<'static, str>>,
    /// What to do about it, in sentences.
    pub hint: Option<Cow<'static, str>>,
}

impl Report {
    /// An ERROR: the session lives on.
    pub fn error(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Error,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// A FATAL: the session ends with it.
    pub fn fatal(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Fatal,
            ..Self::error(sqlstate, message)
        }
    }

    /// A NOTICE: nothing went wrong.
    pub fn notice(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Notice,
            ..Self::error(SqlState::SUCCESSFUL_COMPLETION, message)
        }
    }

    /// A WARNING notice.
    pub fn warning(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(sqlstate, message)
        }
    }

    /// Adds which node, limit or value.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Appends the whole message, type and length included, to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.severity.message_type());
        let length_at = out.len();
        out.extend_from_slice(&[0; 4]);
        let severity = self.severity.as_str();
        for (field, text) in [
            (b'S', Some(severity)),
            (b'V', Some(severity)),
            (b'C', Some(self.sqlstate.as_str())),
            (b'M', Some(self.message.as_ref())),
            (b'D', self.detail.as_deref()),
            (b'H', self.hint.as_deref()),
        ] {
            let Some(text) = text else { continue };
            out.push(field);
            // A zero byte would end the field early and shift what follows.
            out.extend(text.bytes().filter(|&byte| byte != 0));
            out.push(0);
        }
        out.push(0);
        let length = u32::try_from(out.len() - length_at).expect("a report is far below 4 GiB");
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}
