use super::*;

const LAYOUT: WalLayout = WalLayout {
    block_size: 8192,
    segment_size: 16 << 20,
};

#[test]
fn positions_are_printed_and_read_as_postgresql_prints_them() {
    for (text, value) in [
        ("0/0", 0),
        ("0/30006D0", 0x0300_06D0),
        ("16/B374D848", 0x16_B374_D848),
        ("1/1", 0x1_0000_0001),
        ("FFFFFFFF/FFFFFFFF", u64::MAX),
    ] {
        assert_eq!(Lsn(value).to_string(), text);
        assert_eq!(text.parse(), Ok(Lsn(value)));
    }
    assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_B374_D848)));
}

#[test]
fn what_postgresql_refuses_as_a_position_is_refused() {
    for text in [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/123456789",
        "123456789/0",
        "G/0",
        "+1/0",
        "0/-1",
        " 0/0",
        "0/0/0",
    ] {
        assert!(text.parse::<Lsn>().is_err(), "{text:?}");
    }
}

#[test]
fn a_system_identifier_uses_all_64_bits() {
    assert_eq!("18446744073709551615".parse(), Ok(SystemIdentifier(u64::MAX)));
    assert!("-1".parse::<SystemIdentifier>().is_err());
    assert!("".parse::<TimelineId>().is_err());
}

#[test]
fn a_position_behind_a_page_header_is_the_end_of_the_record_before_it() {
    for (insert, end) in [
        // The first page of a segment has the long header, the others the short one.
        (0x0300_0028, 0x0300_0000),
        (0x0300_2018, 0x0300_2000),
        // A record in between, or one that is continued on the page, is left alone.
        (0x0300_0018, 0x0300_0018),
        (0x0300_2028, 0x0300_2028),
        (0x0300_06D0, 0x0300_06D0),
        (0x0300_2000, 0x0300_2000),
        // On a 1 MiB boundary that begins no 16 MiB segment the header is short.
        (0x0310_0028, 0x0310_0028),
        (0x0310_0018, 0x0310_0000),
    ] {
        assert_eq!(Lsn(insert).end_of_record(LAYOUT), Lsn(end), "{insert:X}");
    }
}

#[test]
fn an_unknown_layout_changes_nothing() {
    let layout = WalLayout {
        block_size: 0,
        segment_size: 0,
    };
    assert_eq!(Lsn(0x0300_0028).end_of_record(layout), Lsn(0x0300_0028));
}
