use super::*;

fn scope(pairs: &[(&str, &str)]) -> Scope {
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    super::super::Settings::new(pairs.collect()).scope().clone()
}

/// What another has prepared under MDY was run for a client under DMY: the wrong day, without a word.
#[test]
fn a_text_with_constants_is_another_where_they_are_read_otherwise() {
    let registry = StatementRegistry::default();
    let epoch = Epoch::begin();
    let of = |pairs: &[(&str, &str)], text: &str| {
        let mut client = ClientStatements::new(NonZeroU32::MIN);
        client.scope = scope(pairs);
        registry.statement(client.meaning(epoch), text.as_bytes(), b"\0\0")
    };
    let (mdy, dmy) = ([("datestyle", "ISO, MDY")], [("datestyle", "ISO, DMY")]);
    for (text, is_another) in [
        ("SELECT '01/02/2024'::date", true),
        ("SELECT $$01/02/2024$$::date", true),
        ("SELECT $a$01/02/2024$a$::date", true),
        ("SELECT été", true),
        ("SELECT $1::date, $12", false),
        ("SELECT a FROM t WHERE b = 1", false),
    ] {
        assert_eq!(
            !Arc::ptr_eq(&of(&mdy, text), &of(&dmy, text)),
            is_another,
            "{text}"
        );
    }
}

fn statement(client: &ClientStatements, registry: &StatementRegistry, epoch: Epoch) -> Arc<Statement> {
    StatementCache::default().statement(registry, client.meaning(epoch), b"select $1", b"\0\0")
}

#[test]
fn one_text_is_one_statement_and_its_meaning_tells_texts_apart() {
    let registry = StatementRegistry::default();
    let (client, epoch) = (ClientStatements::new(NonZeroU32::MIN), Epoch::begin());
    let one = statement(&client, &registry, epoch);
    assert!(Arc::ptr_eq(&one, &statement(&client, &registry, epoch)));
    let other = registry.statement(client.meaning(epoch), b"select $1", b"\0\x01\0\0\0\x17");
    let later = statement(&client, &registry, Epoch::begin());
    let mut elsewhere = ClientStatements::new(NonZeroU32::MIN);
    elsewhere.scope = scope(&[("search_path", "a")]);
    let elsewhere = statement(&elsewhere, &registry, epoch);
    let of_others = ClientStatements::new(NonZeroU32::MAX);
    let of_others = statement(&of_others, &registry, epoch);
    let mut private = ClientStatements::new(NonZeroU32::MIN);
    private.begin_moment(true);
    let private = statement(&private, &registry, epoch);
    for another in [other, later, elsewhere, of_others, private] {
        assert_ne!(one.name(), another.name());
    }
}

#[test]
fn what_nobody_holds_is_forgotten() {
    let registry = StatementRegistry::default();
    drop(statement(
        &ClientStatements::new(NonZeroU32::MIN),
        &registry,
        Epoch::begin(),
    ));
    registry.sweep();
    assert!(registry.shards.iter().all(|shard| shard.lock().is_empty()));
}

#[test]
fn an_epoch_is_left_once_however_many_find_it_outdated() {
    let current = CurrentEpoch::default();
    let outdated = current.load();
    let next = current.leave(outdated);
    assert_ne!(next, outdated);
    assert_eq!(current.leave(outdated), next);
}

/// A RowDescription's body with a column of this name and type.
fn described(name: &str, table: u32, oid: u32, format: u16) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend(name.bytes().chain([0]));
    body.extend(table.to_be_bytes());
    body.extend([0, 1]);
    body.extend(oid.to_be_bytes());
    body.extend([0, 4, 255, 255, 255, 255]);
    body.extend(format.to_be_bytes());
    body
}

#[test]
fn a_shape_is_what_decides_how_rows_are_read() {
    let shape = |body: &[u8]| Shape::of_row_description(body);
    let known = shape(&described("a", 16_384, 23, 0)).unwrap();
    assert_eq!(shape(&described("a", 16_999, 23, 1)), Some(known));
    assert_ne!(shape(&described("a", 16_384, 25, 0)), Some(known));
    assert_ne!(shape(&described("b", 16_384, 23, 0)), Some(known));
    assert_ne!(shape(&[0, 0]), Some(known));
    assert_eq!(shape(&[0, 1]), None);
    let registry = StatementRegistry::default();
    let statement = statement(&ClientStatements::new(NonZeroU32::MIN), &registry, Epoch::begin());
    assert_eq!(statement.shape(), None);
    assert!(statement.agrees_on(known) && statement.agrees_on(known));
    assert!(!statement.agrees_on(Shape::none()));
    assert_eq!(statement.shape(), Some(known));
}

#[test]
fn behind_code_that_nobody_has_read_texts_with_constants_are_ones_own() {
    let registry = StatementRegistry::default();
    let (epoch, other) = (Epoch::begin(), ClientStatements::new(NonZeroU32::MIN));
    let mut client = ClientStatements::new(NonZeroU32::MIN);
    let of = |client: &ClientStatements, text: &str| {
        registry.statement(client.meaning(epoch), text.as_bytes(), b"\0\0")
    };
    let (plain, constant) = ("SELECT a FROM t WHERE b = $1", "SELECT '01/02/2024'::date");
    let before = of(&client, constant);
    client.distrust_constants();
    assert!(Arc::ptr_eq(&of(&client, plain), &of(&other, plain)));
    let behind = of(&client, constant);
    assert!(!Arc::ptr_eq(&behind, &of(&other, constant)));
    assert!(Arc::ptr_eq(&behind, &of(&client, constant)));
    assert!(client.may_read_otherwise(&before) && !client.may_read_otherwise(&behind));
    assert!(!client.may_read_otherwise(&of(&other, plain)));
    assert!(!client.is_known_to_read_otherwise(&before));
    client.begin_moment(false);
    assert!(
        client.is_known_to_read_otherwise(&before),
        "what nobody has read may have"
    );
    assert!(client.leave_moment() && !client.has_moment());
    assert!(!client.may_read_otherwise(&before));
    assert!(Arc::ptr_eq(&before, &of(&client, constant)));
    client.begin_moment(false);
    assert!(!client.is_known_to_read_otherwise(&before) && !client.may_read_otherwise(&before));
    client.begin_moment(true);
    assert!(client.is_known_to_read_otherwise(&before) && client.may_read_otherwise(&before));
    assert!(client.leave_moment());
    // Where it is not over with the transaction it is as it was left, and not another thing each time.
    client.distrust_constants();
    assert!(!client.leave_moment() && !client.has_moment());
    let lasting = of(&client, constant);
    assert!(client.may_read_otherwise(&before) && !client.may_read_otherwise(&lasting));
    assert!(Arc::ptr_eq(&of(&client, plain), &of(&other, plain)));
    client.distrust_constants();
    assert!(!client.leave_moment() && !Arc::ptr_eq(&lasting, &of(&client, constant)));
    client.end_own();
    assert!(Arc::ptr_eq(&before, &of(&client, constant)));
}
