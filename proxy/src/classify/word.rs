//! The keywords that the classifier knows, and how each reads before an opening parenthesis.
//!
//! The categories are those of PostgreSQL's `src/include/parser/kwlist.h` (manual, appendix C). They decide what may be
//! a function: a reserved word never is one, a "column name" keyword never is one unless quoted or qualified, the rest
//! may be. Only the reserved and column name keywords that **every** supported major version has are listed as such
//! without a version: on an older server a newer keyword is a plain name, and a plain name may be a volatile function.

/// How a word reads when an opening parenthesis follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paren {
    /// A reserved keyword: what follows is not a list of arguments.
    Reserved,
    /// A special form that calls nothing but built-in code, from this major version on.
    Form(u32),
    /// An operator or clause when it follows an operand, else a function of that name.
    AfterOperand,
    /// A function, unless the grammar around it says otherwise.
    Call,
}

macro_rules! words {
    ($($paren:expr => { $($variant:ident)* })*) => {
        /// A keyword with a meaning for the classifier, or any other name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, non_camel_case_types, reason = "each variant is spelled as the keyword that it is")]
        pub(super) enum Word {
            /// Not a keyword, or one that means nothing here.
            Name,
            $($($variant,)*)*
        }

        const WORDS: &[(&str, Word, Paren)] = &[$($((stringify!($variant), Word::$variant, $paren),)*)*];
    };
}

/// The oldest major version that is supported; its keywords need no version of their own.
pub(super) const OLDEST: u32 = 13;

words! {
    Paren::Reserved => {
        All Analyse Analyze And Any Array As Asc Asymmetric Both Case Cast Check Collate Column Constraint Create
        Current_Catalog Current_Date Current_Role Current_Time Current_Timestamp Current_User Default Deferrable Desc
        Distinct Do Else End Except False Fetch For Foreign From Grant Group Having In Initially Intersect Into Lateral
        Leading Limit LocalTime LocalTimestamp Not Null Offset On Only Or Order Placing Primary References Returning
        Select Session_User Some Symmetric Table Then To Trailing True Union Unique User Using Variadic When Where
        Window With
    }
    Paren::Form(OLDEST) => {
        Between BigInt Bit Boolean Char Character Coalesce Dec Decimal Exists Extract Float Greatest Grouping Int
        Integer Interval Least National NChar Normalize NullIf Numeric Position Real Row SmallInt Time Timestamp Treat
        Trim Values VarChar XmlAttributes XmlConcat XmlElement XmlExists XmlForest XmlNamespaces XmlParse XmlPi XmlRoot
        XmlSerialize XmlTable
    }
    Paren::Form(16) => { Json_Array Json_ArrayAgg Json_Object Json_ObjectAgg }
    Paren::Form(17) => { Json Json_Exists Json_Query Json_Scalar Json_Serialize Json_Table Json_Value }
    Paren::AfterOperand => { Columns Escape ILike Join Like Overlaps Passing }
    Paren::Call => {
        Abort Alter Atomic Begin By Call Chain Characteristics Close Commit Committed Constraints Copy Cube Cursor
        Deallocate Declare Delete Discard Drop Execute Explain First Function Global Hold Import Insert Is Isolation Key
        Level Listen Load Local Materialized Merge Move Next No Notify Operator Ordinality Partition Plans Prepare Prepared
        Procedure Read Recursive Refresh Release Repeatable Replace Reset Rollback Rollup Savepoint Schema Second Sequences
        Serializable Session Set Sets Share Show Snapshot Start StdOut Temp Temporary Transaction Uncommitted Unlisten
        Update Varying Verbose Work Write Zone
    }
}

/// Slots of the lookup table: a power of two, so sparse that nearly every probe is the only one.
const SLOTS: usize = 1024;
const LONGEST: usize = 17;
const NO_WORD: u8 = u8::MAX;

/// Open addressing over [`WORDS`], laid out at compile time.
const TABLE: [u8; SLOTS] = {
    assert!(WORDS.len() < NO_WORD as usize, "an index must fit a byte");
    let mut table = [NO_WORD; SLOTS];
    let mut index: u8 = 0;
    while (index as usize) < WORDS.len() {
        let text = WORDS[index as usize].0.as_bytes();
        assert!(text.len() <= LONGEST, "LONGEST must be raised");
        let mut slot = slot_of(text);
        while table[slot] != NO_WORD {
            slot = (slot + 1) % SLOTS;
        }
        table[slot] = index;
        index += 1;
    }
    table
};

/// The slot a word hashes to, whatever its case. Only spreading matters: the word found is compared in full.
const fn slot_of(word: &[u8]) -> usize {
    let length = word.len();
    let ends = (word[0] | 0x20) as usize | (((word[length - 1] | 0x20) as usize) << 8);
    let middle = (word[length / 2] | 0x20) as usize | (((word[length / 3] | 0x20) as usize) << 8);
    let hash = (ends | (middle << 16) | (length << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash >> (usize::BITS - SLOTS.trailing_zeros())
}

impl Word {
    /// The keyword that `name`, an unquoted identifier, is.
    pub(super) fn of(name: &[u8]) -> (Self, Paren) {
        if name.is_empty() || name.len() > LONGEST {
            return (Self::Name, Paren::Call);
        }
        let mut slot = slot_of(name);
        while TABLE[slot] != NO_WORD {
            let (text, word, paren) = WORDS[TABLE[slot] as usize];
            if text.as_bytes().eq_ignore_ascii_case(name) {
                return (word, paren);
            }
            slot = (slot + 1) % SLOTS;
        }
        (Self::Name, Paren::Call)
    }

    /// Whether a query begins with this word.
    pub(super) const fn begins_query(self) -> bool {
        matches!(self, Self::Select | Self::Values | Self::Table | Self::With)
    }

    /// Whether an operand can end with this word, so that `(` after an operator word is that operator's operand.
    pub(super) const fn ends_operand(self) -> bool {
        matches!(
            self,
            Self::Name
                | Self::End
                | Self::Null
                | Self::True
                | Self::False
                | Self::Not
                | Self::Current_Date
                | Self::Current_Time
                | Self::Current_Timestamp
                | Self::Current_User
                | Self::Session_User
                | Self::User
        )
    }
}
