//! Why a request goes where it goes, for metrics, traces and explanations.

use std::fmt;

use crate::classify::Access;

macro_rules! reasons {
    ($($variant:ident, $label:literal, $sentence:literal;)*) => {
        /// Why a request went to the node that it went to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum RouteReason { $(#[doc = $sentence] $variant,)* }

        impl RouteReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value of a metric's label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The reason as an English sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    Class, "class", "Its class decides: reads go to standbys, the rest to the primary.";
    State, "state", "It leaves something in its session that only the primary can keep for it.";
    Serializable, "serializable", "The session's transactions are serializable, which a standby cannot run.";
    Unfinished, "unfinished", "Its batch is not whole yet and may go on with anything.";
    SessionPooling, "session_pooling", "In session pooling a session belongs to the primary.";
    Refused, "refused", "A standby refused it as a write.";
    Behind, "behind", "No standby has replayed what the session has to see.";
    NoStandby, "no_standby", "No standby serves reads.";
    Transaction, "transaction", "A transaction block is open there.";
    Pinned, "pinned", "The session keeps its connection to that node.";
    Pipeline, "pipeline", "It follows a request on the same connection that is not answered yet.";
    Hint, "hint", "A comment in front of it or behind it says so.";
    Setting, "setting", "The session's halyard.route says so.";
    Policy, "policy", "The configuration of its user or database says so.";
    Port, "port", "The port's role says so.";
}

impl fmt::Display for RouteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One routing decision: what a request needed, as what its node was chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What it needed.
    pub class: Access,
    /// Whether the node was chosen as the primary.
    pub as_primary: bool,
    /// Why.
    pub reason: RouteReason,
}

impl Decision {
    /// How many different ones there are.
    pub const COUNT: usize = 4 * RouteReason::ALL.len();

    /// Its number, below [`Decision::COUNT`].
    #[inline]
    #[must_use]
    pub const fn number(self) -> usize {
        let class = matches!(self.class, Access::Write) as usize;
        self.reason as usize * 4 + class * 2 + self.as_primary as usize
    }

    /// All of them, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        RouteReason::ALL.iter().flat_map(|&reason| {
            [Access::Read, Access::Write].into_iter().flat_map(move |class| {
                [false, true].map(move |as_primary| Self {
                    class,
                    as_primary,
                    reason,
                })
            })
        })
    }

    /// What the node was chosen as: the value of a metric's label.
    #[must_use]
    pub const fn target(self) -> &'static str {
        if self.as_primary { "primary" } else { "standby" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_numbered_in_their_order() {
        let numbers: Vec<_> = Decision::all().map(Decision::number).collect();
        assert_eq!(numbers, (0..Decision::COUNT).collect::<Vec<_>>());
    }
}
