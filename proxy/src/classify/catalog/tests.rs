use super::*;

fn from(rows: &str) -> FunctionCatalog {
    FunctionCatalog::from_dump(rows.as_bytes(), &FunctionOverrides::default()).expect("rows of the query")
}

fn function(catalog: &FunctionCatalog, written: &str) -> Function {
    catalog.look_up(written.as_bytes()).function
}

fn mark(catalog: &FunctionCatalog, written: &str) -> Mark {
    catalog.look_up(written.as_bytes()).mark
}

#[test]
fn a_name_is_as_volatile_as_its_worst_overload() {
    for rows in ["f\tf\ti\tt\nf\tf\tv\tf\n", "f\tf\tv\tf\nf\tf\ti\tt\n"] {
        assert_eq!(function(&from(rows), "f"), Function::Volatile);
    }
    assert_eq!(function(&from("f\tf\ts\tt\n"), "f"), Function::Reads);
    assert_eq!(function(&from(""), "f"), Function::Unknown);
}

#[test]
fn harmless_functions_are_postgresqls_own_alone() {
    assert_eq!(function(&from("f\trandom\tv\tt\n"), "random"), Function::Reads);
    assert_eq!(function(&from("f\trandom\tv\tf\n"), "random"), Function::Volatile);
    assert_eq!(
        function(&from("f\trandom\tv\tt\nf\trandom\tv\tf\n"), "random"),
        Function::Volatile
    );
}

#[test]
fn identifiers_are_folded_as_the_server_folds_them() {
    let long = "x".repeat(63);
    let catalog = from(&format!(
        "f\tlower\ti\tt\nf\tMixed\"Case\ti\tf\nf\t{long}\ti\tf\n"
    ));
    for known in [
        "lower",
        "LOWER",
        "\"lower\"",
        "\"Mixed\"\"Case\"",
        &long,
        &format!("{long}yz"),
        &format!("\"{long}yz\""),
    ] {
        assert_eq!(function(&catalog, known), Function::Reads, "{known}");
    }
    for unknown in ["\"LOWER\"", "MixedCase", "\"mixed\"\"case\"", &long[1..], "löwer"] {
        assert_eq!(function(&catalog, unknown), Function::Unknown, "{unknown}");
    }
}

#[test]
fn a_marked_name_beyond_ascii_marks_all_names_beyond_ascii() {
    let catalog = from("f\tapp\tv\tf\nr\tgröße\tapp\tf\n");
    assert_eq!(mark(&catalog, "größe"), Mark::Volatile);
    assert_eq!(
        mark(&catalog, "\"änderung\""),
        Mark::Volatile,
        "its bytes hang on the client's encoding"
    );
    assert_eq!(mark(&catalog, "size"), Mark::None);
    assert_eq!(mark(&from(""), "größe"), Mark::None);
}

#[test]
fn views_are_marked_by_what_they_call_through_any_number_of_views() {
    let rows = "r\ta\tnextval\tt\ne\tb\ta\tf\ne\tc\tb\tf\ne\tb\tc\tf\nr\td\trandom\tt\nr\te\tpg_is_in_recovery\tt\n\
                e\tf\tpg_stat_activity\tf\nn\tu\tr\tf\ne\tg\tu\tf\nr\th\tlower\tt\ne\ti\tu\tf\ne\ti\tc\tf\n\
                f\tnextval\tv\tt\nf\tlower\ti\tt\nf\trandom\tv\tt\nf\tpg_is_in_recovery\tv\tt\nr\tj\tnot_in_pg_proc\tf\n";
    let catalog = from(rows);
    for (name, expected) in [
        ("a", Mark::Volatile),
        ("b", Mark::Volatile),
        ("c", Mark::Volatile),
        ("d", Mark::None),
        ("e", Mark::Primary),
        ("f", Mark::Primary),
        ("g", Mark::Primary),
        ("h", Mark::None),
        ("i", Mark::Volatile),
        ("j", Mark::Volatile),
        ("u", Mark::Primary),
    ] {
        assert_eq!(mark(&catalog, name), expected, "{name}");
    }
}

#[test]
fn the_operators_word_counts_for_functions_and_the_views_that_call_them() {
    let rows = b"f\tuuid_generate_v4\tv\tf\nf\tlower\ti\tt\nf\tpg_backend_pid\ts\tt\nf\trandom\tv\tt\n\
                 r\tids\tuuid_generate_v4\tf\nr\tchance\trandom\tt\nc\tt\tuuid_generate_v4\tf\nf\tpg_advisory_lock\tv\tt\n";
    let overrides = FunctionOverrides {
        allow: ["uuid_generate_v4", "pg_backend_pid", "pg_advisory_lock"]
            .map(str::to_owned)
            .to_vec(),
        deny: ["lower", "random"].map(str::to_owned).to_vec(),
    };
    let catalog = FunctionCatalog::from_dump(rows, &overrides).expect("rows of the query");
    assert_eq!(function(&catalog, "uuid_generate_v4"), Function::Reads);
    assert_eq!(
        catalog.look_up(b"pg_backend_pid"),
        Known {
            function: Function::Reads,
            ..Known::default()
        }
    );
    assert_eq!(
        catalog.look_up(b"pg_advisory_lock").special,
        Special::AdvisoryLock
    );
    assert_eq!(function(&catalog, "lower"), Function::Volatile);
    assert_eq!(function(&catalog, "random"), Function::Volatile);
    assert_eq!(
        (mark(&catalog, "ids"), mark(&catalog, "chance")),
        (Mark::None, Mark::Volatile)
    );
    assert!(!catalog.volatile_implicit());
    let both = FunctionOverrides {
        allow: vec!["f".to_owned()],
        deny: vec!["f".to_owned()],
    };
    assert_eq!(
        function(
            &FunctionCatalog::from_dump(b"f\tf\ts\tf\n", &both).expect("rows of the query"),
            "f"
        ),
        Function::Volatile
    );
}

#[test]
fn the_generation_is_the_contents() {
    let one = from("f\ta\ti\tt\nf\tb\tv\tt\n");
    assert_eq!(
        one.generation(),
        from("f\tb\tv\tt\nf\ta\ti\tt\n").generation(),
        "the order does not matter"
    );
    assert_ne!(one.generation(), from("f\ta\ti\tt\n").generation());
    assert_ne!(one.generation(), from("f\ta\ti\tt\nf\tb\ts\tt\n").generation());
}

#[test]
fn rows_that_the_query_cannot_return_are_refused() {
    let error = |rows: &str| {
        FunctionCatalog::from_dump(rows.as_bytes(), &FunctionOverrides::default()).expect_err("refused")
    };
    assert_eq!(error("z\ta\tb\tt\n"), CatalogError::Kind('z'));
    assert_eq!(error("f\ta\ti\tt\nf\ta\n"), CatalogError::Columns(2));
    assert_eq!(error("f\ta\ti\tyes\n"), CatalogError::Columns(1));
    assert!(matches!(
        error("f\ta\tx\tt\n"),
        CatalogError::Detail { kind: 'f', .. }
    ));
    assert!(matches!(
        error("x\tserver_version_num\tnew\tt\n"),
        CatalogError::Detail { kind: 'x', .. }
    ));
}

#[test]
fn the_recorded_catalogue_is_whole() {
    let catalog = FunctionCatalog::builtin();
    assert_eq!(catalog.server_version_num() / 10_000, 15);
    assert!(catalog.functions() > 2_500, "{}", catalog.functions());
    assert!(!catalog.volatile_implicit());
    for name in builtins::HARMLESS {
        assert_ne!(function(&catalog, name), Function::Volatile, "{name}");
    }
    assert_eq!(function(&catalog, "nextval"), Function::Volatile);
    assert_eq!(mark(&catalog, "pg_sequences"), Mark::Volatile);
    assert_eq!(mark(&catalog, "pg_class"), Mark::None);
}

#[test]
fn without_a_catalogue_the_special_functions_are_known_all_the_same() {
    let catalog = FunctionCatalog::empty();
    assert_eq!(catalog.look_up(b"set_config").special, Special::SetConfig);
    assert_eq!(mark(&catalog, "pg_stat_activity"), Mark::Primary);
    assert_eq!(function(&catalog, "lower"), Function::Unknown);
}

/// What hides behind the names of `objects.sql`, as a server told it.
#[test]
fn the_recorded_objects_are_marked() {
    let rows = concat!(include_str!("postgresql15.tsv"), include_str!("objects.tsv"));
    let catalog = from(rows);
    for name in [
        "v_next",
        "v_w",
        "v_nested",
        "v_nested2",
        "rls",
        "v_rls",
        "v_op",
        "v_agg",
        "dom",
        "ct",
        "t_attr",
        "\"Größe\"",
        "dom_of_dom",
        "ct_of_dom",
        "t_of_ct",
        "textish",
        "casted",
        "takes_casted",
        "holds_casted",
        "v_holds_casted",
        "casts",
        "holds_casts",
    ] {
        assert_eq!(mark(&catalog, name), Mark::Volatile, "{name}");
    }
    for name in [
        "sq",
        "ul",
        "v_ul",
        "v_stat",
        "v_xid",
        "leaf",
        "middle",
        "parent",
        "v_parent",
        "ft",
        "v_ft",
        "ft_part",
        "parent_of_ft",
    ] {
        assert_eq!(mark(&catalog, name), Mark::Primary, "{name}");
    }
    for name in [
        "t",
        "v_ok",
        "mv",
        "v_mv",
        "rls_insert",
        "logged_leaf",
        "dom_ok",
        "v_definer",
        "ruled",
    ] {
        assert_eq!(mark(&catalog, name), Mark::None, "{name}");
    }
    for name in ["w", "s", "opw", "agg_s", "myagg", "ct_from", "definer_w"] {
        assert_eq!(function(&catalog, name), Function::Volatile, "{name}");
    }
    assert_eq!(function(&catalog, "definer"), Function::Reads);
    assert!(catalog.is_volatile_operator(b"!>"));
    assert!(catalog.is_volatile_operator(b"<<!") && !catalog.is_volatile_operator(b"<<"));
    assert!(!catalog.volatile_implicit());
}
