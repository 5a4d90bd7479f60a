//! What the catalogue's volatility does not say of PostgreSQL's own functions, relations and settings.
//!
//! `pg_proc.provolatile` answers whether the planner may move a call. A router asks something else: may a standby run
//! it, and is its answer the same there? These lists hold the names where the two differ. They name functions of the
//! schema `pg_catalog`; extensions' functions where said so.

/// What a function means for routing besides its volatility.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Special {
    /// Nothing: its volatility says all.
    #[default]
    None,
    /// It answers for a node or a backend, so its answer has to come from the primary.
    Primary,
    /// It runs SQL that it is given as text.
    RunsText,
    /// `set_config`: a SET unless its last argument is true.
    SetConfig,
    /// `current_setting`: shows the setting that it is given as text.
    CurrentSetting,
    /// It takes a session-level advisory lock.
    AdvisoryLock,
    /// It gives session-level advisory locks back.
    AdvisoryUnlock,
    /// It takes an advisory lock until the end of the transaction.
    TransactionLock,
    /// It gives its transaction an ID.
    TransactionId,
    /// It needs the backend that called `nextval`.
    Sequence,
    /// It notifies.
    Notify,
    /// It tells what its backend listens to.
    Listening,
    /// It leaves something in the backend that nothing can follow.
    SessionState,
}

/// Volatile, and yet a standby may run them: they change nothing, and no node's answer is better than another's.
pub(super) const HARMLESS: &[&str] = &[
    // Chance and identifiers: different at every call, wherever it runs. (`setseed` is not here: it is meant to
    // reach a later `random`.)
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    // The wall clock.
    "clock_timestamp",
    "timeofday",
    // Waiting takes time and nothing else.
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    // The text of the statement itself.
    "current_query",
    // Sizes of files that replication makes alike; off by a segment at most, as on the primary a moment ago.
    "pg_database_size",
    "pg_indexes_size",
    "pg_relation_size",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    // The catalogues, read without a snapshot of the statement: the same rows.
    "pg_collation_actual_version",
    "pg_database_collation_actual_version",
    "pg_partition_ancestors",
    "pg_partition_tree",
    // Sampling methods: they stand after TABLESAMPLE, and no statement can call them as functions.
    "bernoulli",
    "system",
];

/// Functions with a meaning of their own. They keep it whatever the catalogue says.
pub(super) const SPECIAL: &[(&str, Special)] = &[
    // The role and the WAL position: a client must see the node it writes to, or target_session_attrs goes astray.
    ("pg_is_in_recovery", Special::Primary),
    ("pg_current_wal_lsn", Special::Primary),
    ("pg_current_wal_insert_lsn", Special::Primary),
    ("pg_current_wal_flush_lsn", Special::Primary),
    ("pg_last_wal_receive_lsn", Special::Primary),
    ("pg_last_wal_replay_lsn", Special::Primary),
    ("pg_last_xact_replay_timestamp", Special::Primary),
    ("pg_is_wal_replay_paused", Special::Primary),
    ("pg_get_wal_replay_pause_state", Special::Primary),
    ("pg_control_checkpoint", Special::Primary),
    ("pg_control_recovery", Special::Primary),
    // Declared immutable, and refused during recovery.
    ("pg_walfile_name", Special::Primary),
    ("pg_walfile_name_offset", Special::Primary),
    // Declared stable, and assign a transaction ID (refused during recovery) or speak of the node's own.
    ("txid_current", Special::TransactionId),
    ("pg_current_xact_id", Special::TransactionId),
    ("txid_current_if_assigned", Special::Primary),
    ("txid_current_snapshot", Special::Primary),
    ("txid_status", Special::Primary),
    ("pg_current_xact_id_if_assigned", Special::Primary),
    ("pg_current_snapshot", Special::Primary),
    ("pg_xact_status", Special::Primary),
    ("pg_export_snapshot", Special::Primary),
    // Process IDs and processes: pg_cancel_backend goes to the primary, so what it is given must come from there.
    ("pg_backend_pid", Special::Primary),
    ("pg_blocking_pids", Special::Primary),
    ("pg_safe_snapshot_blocking_pids", Special::Primary),
    ("pg_postmaster_start_time", Special::Primary),
    ("pg_conf_load_time", Special::Primary),
    ("pg_get_replication_slots", Special::Primary),
    ("pg_show_all_settings", Special::Primary),
    // SQL in a string constant, which nothing here reads; those of the extensions tablefunc and xml2 claim to be stable.
    ("query_to_xml", Special::RunsText),
    ("query_to_xmlschema", Special::RunsText),
    ("query_to_xml_and_xmlschema", Special::RunsText),
    ("cursor_to_xml", Special::RunsText),
    ("cursor_to_xmlschema", Special::RunsText),
    // These read any relation, views over volatile functions among them.
    ("table_to_xml", Special::RunsText),
    ("table_to_xml_and_xmlschema", Special::RunsText),
    ("schema_to_xml", Special::RunsText),
    ("schema_to_xml_and_xmlschema", Special::RunsText),
    ("database_to_xml", Special::RunsText),
    ("database_to_xml_and_xmlschema", Special::RunsText),
    ("ts_rewrite", Special::RunsText),
    ("ts_stat", Special::RunsText),
    ("crosstab", Special::RunsText),
    ("crosstab2", Special::RunsText),
    ("crosstab3", Special::RunsText),
    ("crosstab4", Special::RunsText),
    ("crosstabn", Special::RunsText),
    ("connectby", Special::RunsText),
    ("xpath_table", Special::RunsText),
    // Session state that the pool follows or keeps the backend for.
    ("set_config", Special::SetConfig),
    ("current_setting", Special::CurrentSetting),
    ("pg_advisory_lock", Special::AdvisoryLock),
    ("pg_advisory_lock_shared", Special::AdvisoryLock),
    ("pg_try_advisory_lock", Special::AdvisoryLock),
    ("pg_try_advisory_lock_shared", Special::AdvisoryLock),
    ("pg_advisory_unlock", Special::AdvisoryUnlock),
    ("pg_advisory_unlock_shared", Special::AdvisoryUnlock),
    ("pg_advisory_unlock_all", Special::AdvisoryUnlock),
    ("pg_advisory_xact_lock", Special::TransactionLock),
    ("pg_advisory_xact_lock_shared", Special::TransactionLock),
    ("pg_try_advisory_xact_lock", Special::TransactionLock),
    ("pg_try_advisory_xact_lock_shared", Special::TransactionLock),
    ("currval", Special::Sequence),
    ("lastval", Special::Sequence),
    ("pg_notify", Special::Notify),
    ("pg_listening_channels", Special::Listening),
    ("pg_replication_origin_session_setup", Special::SessionState),
    // Extensions: connections of dblink, and pg_trgm's setting by function.
    ("dblink_connect", Special::SessionState),
    ("dblink_connect_u", Special::SessionState),
    ("dblink_disconnect", Special::SessionState),
    ("set_limit", Special::SessionState),
];

/// Relations whose rows are a node's or a backend's own. So is every `pg_stat_*` and `pg_statio_*`, see
/// [`is_node_statistics`].
pub(super) const PRIMARY_RELATIONS: &[&str] = &[
    "pg_backend_memory_contexts",
    "pg_cursors",
    "pg_file_settings",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_locks",
    "pg_prepared_statements",
    "pg_prepared_xacts",
    "pg_replication_origin_status",
    "pg_replication_slots",
    "pg_settings",
    "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
    "pg_aios",
];

/// Settings that tell whether the session may write: they have to agree with the role that the session has, not with
/// the node that happens to answer. `all` is SHOW ALL, which shows them too.
const PRIMARY_SETTINGS: &[&[u8]] = &[
    b"all",
    b"default_transaction_read_only",
    b"in_hot_standby",
    b"transaction_read_only",
];

/// Whether the setting of this name has to be shown by the primary.
pub(super) fn is_primary_setting(name: &[u8]) -> bool {
    PRIMARY_SETTINGS
        .iter()
        .any(|setting| setting.eq_ignore_ascii_case(name))
}

/// Whether a name, in any case, is that of cumulative statistics, which every node counts for itself (`pg_stats` and
/// `pg_statistic`, what ANALYZE gathers, are replicated).
#[inline]
pub(super) fn is_node_statistics(name: &[u8]) -> bool {
    let begins = |with: &[u8]| {
        name.get(..with.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    begins(b"pg_stat_") || begins(b"pg_statio_")
}
