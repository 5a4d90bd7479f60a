use proptest::prelude::*;

use super::*;
use crate::error::{Report, SqlState};

#[test]
fn a_header_is_not_yet_there_here_or_broken() {
    assert_eq!(Header::parse(b"Q\0\0\0"), Ok(None));
    assert_eq!(
        Header::parse(b"Q\0\0\0\x04"),
        Ok(Some(Header {
            kind: b'Q',
            length: 4
        }))
    );
    assert!(matches!(
        Header::parse(b"Q\0\0\0\x03"),
        Err(FrameError::Length { length: 3, .. })
    ));
    assert!(matches!(
        Header::parse(b"Q\xff\xff\xff\xff"),
        Err(FrameError::Length { .. })
    ));
}

/// A length below 4 once underflowed to a huge body in a peer.
#[test]
fn a_frontend_header_has_a_servers_limits() {
    assert_eq!(
        Header::parse_frontend(b"p\0\0\0\x08"),
        Err(FrameError::UnknownType(b'p'))
    );
    assert!(
        Header::parse_frontend(b"S\0\0\x27\x11").is_err(),
        "10,001 bytes of Sync"
    );
    assert!(Header::parse_frontend(b"d\x3f\xff\xff\xfe").is_ok());
    assert!(Header::parse_frontend(b"d\x3f\xff\xff\xff").is_err());
    assert_eq!(Header::parse_frontend(b""), Ok(None));
}

#[test]
fn a_parse_body_comes_apart() {
    let body = b"s1\0select $1\0\0\x01\0\0\0\x17";
    let parts = parse_parts(body).unwrap();
    assert_eq!(&body[parts.name], b"s1");
    assert_eq!(&body[parts.text], b"select $1");
    assert_eq!(&body[parts.types], b"\0\x01\0\0\0\x17");
    assert_eq!(parse_parts(b"s1\0select 1\0\0\x01"), None, "a type is missing");
    assert_eq!(parse_parts(b"s1\0select 1"), None, "no end");
    assert_eq!(
        parse_parts(b"\0\0\0\0trailing"),
        None,
        "bytes behind the body's end"
    );
}

/// An ErrorResponse without a SQLSTATE crashed a peer (CVE-2026-6666).
#[test]
fn an_error_without_sqlstate_is_an_internal_one() {
    let fields = error_fields(b"SFATAL\0VFATAL\0Mgone\0\0");
    assert_eq!(
        fields,
        ErrorFields {
            fatal: true,
            sqlstate: SqlState::INTERNAL_ERROR,
            message: b"gone",
            routine: b"",
        }
    );
    assert!(!error_fields(b"").fatal);
    assert!(!error_fields(b"C").fatal);
}

#[test]
fn our_reports_read_back() {
    let mut out = Vec::new();
    Report::error(SqlState::SERIALIZATION_FAILURE, "lost\0node")
        .with_detail("node1")
        .encode(&mut out);
    let header = Header::parse(&out).unwrap().unwrap();
    assert_eq!(header.total(), out.len());
    let fields = error_fields(&out[HEADER_SIZE..]);
    assert_eq!(fields.sqlstate, SqlState::SERIALIZATION_FAILURE);
    assert_eq!(fields.message, b"lostnode");
}

#[test]
fn a_renamed_bind_keeps_its_values() {
    let body = b"c\0old\0\0\0\0\x01\0\0\0\x02hi\0\0";
    let names = bind_names(body).unwrap();
    let mut out = Vec::new();
    bind_renamed(
        &mut out,
        &body[names.portal.clone()],
        b"new_name",
        &body[names.statement.end + 1..],
        0,
    );
    let renamed = &out[HEADER_SIZE..];
    let again = bind_names(renamed).unwrap();
    assert_eq!(&renamed[again.portal], b"c");
    assert_eq!(&renamed[again.statement.clone()], b"new_name");
    assert_eq!(
        &renamed[again.statement.end + 1..],
        &body[names.statement.end + 1..]
    );
}

#[test]
fn an_empty_buffer_gives_its_storage_back() {
    let mut pool = BufferPool::default();
    let mut buffer = FrameBuf::default();
    buffer.spare(&mut pool)[..3].copy_from_slice(b"abc");
    buffer.commit(3);
    buffer.parse(2);
    assert_eq!((buffer.held(), buffer.unparsed()), (&b"ab"[..], &b"c"[..]));
    buffer.rewind();
    assert_eq!(buffer.unparsed(), b"abc");
    buffer.parse(3);
    buffer.release_held();
    assert!(buffer.is_empty());
    buffer.retire(&mut pool);
    assert!(buffer.is_empty());
    assert_eq!(buffer.spare(&mut pool).len(), BUFFER_SIZE);
}

proptest! {
    #[test]
    fn nothing_received_is_lost_or_reordered(chunks in proptest::collection::vec((0usize..3000, 0usize..3000, any::<bool>()), 1..60)) {
        let mut pool = BufferPool::default();
        let mut buffer = FrameBuf::default();
        let (mut written, mut released) = (0u32, 0u32);
        let mut held = 0usize;
        for (arriving, looked_at, letting_go) in chunks {
            let spare = buffer.spare(&mut pool);
            let count = arriving.min(spare.len());
            for byte in &mut spare[..count] {
                *byte = (written % 251) as u8;
                written += 1;
            }
            buffer.commit(count);
            let count = looked_at.min(buffer.unparsed().len());
            buffer.parse(count);
            held += count;
            if letting_go {
                released += u32::try_from(held).unwrap();
                held = 0;
                buffer.release_held();
            }
            let kept: Vec<u8> = buffer.held().iter().chain(buffer.unparsed()).copied().collect();
            let expected: Vec<u8> = (released..written).map(|n| (n % 251) as u8).collect();
            prop_assert_eq!(kept, expected);
            if buffer.unparsed().is_empty() && letting_go { buffer.retire(&mut pool); }
            if buffer.spare(&mut pool).is_empty() {
                let more = buffer.unparsed().len() + 1;
                buffer.reserve(more, &mut pool);
            }
        }
    }

    #[test]
    fn no_body_makes_a_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (parse_parts(&body), bind_names(&body), target_name(&body), parameter_status(&body), error_fields(&body));
        let _ = (Header::parse(&body), Header::parse_frontend(&body));
    }
}
