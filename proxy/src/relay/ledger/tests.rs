use proptest::prelude::*;

use super::*;

fn sent(owed: &[Owed]) -> Ledger {
    let mut ledger = Ledger::default();
    for &owed in owed {
        ledger.owe(owed, Fate::Forward);
    }
    ledger
}

fn answer(ledger: &mut Ledger, kinds: &[u8]) -> Vec<Event> {
    kinds
        .iter()
        .map(|&kind| ledger.on_frame(kind, Some(b'I')).unwrap().event)
        .collect()
}

#[test]
fn a_batch_is_settled_by_its_ready_for_query() {
    use Owed::*;
    let mut ledger = sent(&[Parse, Bind, Describe, Execute, Sync]);
    assert!(ledger.settled().is_none());
    answer(&mut ledger, b"12TDDC");
    assert!(ledger.settled().is_none(), "ReadyForQuery is still owed");
    answer(&mut ledger, b"Z");
    assert!(ledger.settled().is_some());
}

#[test]
fn what_is_asked_in_front_of_a_commit_is_not_told() {
    let asked = || {
        let mut ledger = sent(&[Owed::Query]);
        ledger.on_frame(b'Z', Some(b'T')).unwrap();
        ledger.owe(Owed::Query, Fate::Learn);
        ledger.owe(Owed::Query, Fate::Forward);
        ledger
    };
    let mut ledger = asked();
    assert_eq!(ledger.readies(), 1);
    assert_eq!(ledger.due().collect::<Vec<_>>(), [Owed::Query]);
    for kind in *b"TDC" {
        assert!(!ledger.on_frame(kind, None).unwrap().forward);
    }
    assert!(!ledger.on_frame(b'Z', Some(b'T')).unwrap().forward);
    assert!(ledger.on_frame(b'C', None).unwrap().forward);
    assert!(ledger.on_frame(b'Z', Some(b'I')).unwrap().forward);
    assert!(ledger.settled().is_some());

    let mut ledger = asked();
    let refused = ledger.on_frame(b'E', None).unwrap();
    assert_eq!(
        (refused.forward, refused.event),
        (false, Event::Failed { ours: true })
    );
    assert!(!ledger.on_frame(b'Z', Some(b'E')).unwrap().forward);
    answer(&mut ledger, b"CZ");
    assert!(ledger.settled().is_some());
}

#[test]
fn what_was_sent_otherwise_than_written_is_the_clients_and_looked_at() {
    for fate in [Fate::Retagged, Fate::Renamed(Tag::Listen)] {
        let mut ledger = Ledger::default();
        ledger.owe(Owed::Query, fate);
        assert_eq!((ledger.readies(), ledger.due().count()), (1, 1));
        for kind in *b"TDC" {
            assert!(!ledger.is_mere_part(kind));
            assert!(ledger.on_frame(kind, None).unwrap().forward);
        }
        assert!(ledger.on_frame(b'Z', Some(b'T')).unwrap().forward);
        assert_eq!((ledger.readies(), ledger.is_empty()), (0, true));
    }
}

#[test]
fn an_open_block_is_not_settled() {
    let mut ledger = sent(&[Owed::Query]);
    answer(&mut ledger, b"C");
    ledger.on_frame(b'Z', Some(b'T')).unwrap();
    assert!(ledger.is_empty() && ledger.settled().is_none());
}

#[test]
fn after_an_error_all_up_to_sync_is_dropped_and_the_next_batch_is_not() {
    use Owed::*;
    let mut ledger = sent(&[Parse, Bind, Execute, Sync, Bind, Execute, Sync]);
    answer(&mut ledger, b"1E");
    assert_eq!(ledger.len(), 4);
    answer(&mut ledger, b"Z2CZ");
    assert!(ledger.settled().is_some());
}

#[test]
fn an_error_before_the_sync_is_sent_leaves_the_batch_open() {
    let mut ledger = sent(&[Owed::Parse]);
    answer(&mut ledger, b"E");
    assert!(ledger.skips_until_sync() && ledger.batch_open() && ledger.settled().is_none());
    ledger.owe(Owed::Sync, Fate::Forward);
    answer(&mut ledger, b"Z");
    assert!(ledger.settled().is_some());
}

/// A deferred constraint fails at Sync: the error comes when only ReadyForQuery is left.
#[test]
fn an_error_at_sync_is_followed_by_its_ready() {
    let mut ledger = sent(&[Owed::Execute, Owed::Sync]);
    answer(&mut ledger, b"CEZ");
    assert!(ledger.settled().is_some());
}

#[test]
fn fakes_wait_for_their_turn_and_fall_with_their_batch() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Bind, Fate::Forward);
    ledger.owe(Owed::CloseStatement, Fate::Fake);
    assert_eq!(ledger.next_fake(), None);
    ledger.on_frame(b'2', None).unwrap();
    assert_eq!(ledger.next_fake(), Some(Owed::CloseStatement));

    ledger.owe(Owed::Bind, Fate::Forward);
    ledger.owe(Owed::CloseStatement, Fate::Fake);
    ledger.owe(Owed::Sync, Fate::Forward);
    ledger.on_frame(b'E', None).unwrap();
    assert_eq!(ledger.next_fake(), None);
    assert_eq!(ledger.current(), Some((Owed::Sync, Fate::Forward)));
}

#[test]
fn what_we_asked_ourselves_is_not_forwarded_but_its_error_is() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Parse, Fate::Skip);
    assert!(!ledger.on_frame(b'1', None).unwrap().forward);
    ledger.owe(Owed::Parse, Fate::Skip);
    ledger.owe(Owed::Bind, Fate::Forward);
    let verdict = ledger.on_frame(b'E', None).unwrap();
    assert_eq!(
        verdict,
        Verdict {
            forward: true,
            event: Event::Failed { ours: true }
        }
    );
}

/// libpq sends Sync right behind an Execute that copies in, and once more behind CopyDone; a server in copy
/// mode ignores the first.
#[test]
fn sync_during_copy_in_owes_nothing() {
    let mut ledger = sent(&[Owed::Parse, Owed::Bind, Owed::Execute, Owed::Sync]);
    answer(&mut ledger, b"12G");
    assert!(ledger.copy_in() && ledger.batch_open());
    assert_eq!(ledger.readies(), 0);
    ledger.copy_ended();
    assert!(!ledger.copy_in());
    ledger.owe(Owed::Sync, Fate::Forward);
    answer(&mut ledger, b"CZ");
    assert!(ledger.settled().is_some());
}

#[test]
fn a_whole_copy_in_one_flight_keeps_its_last_sync() {
    let mut ledger = sent(&[Owed::Execute, Owed::Sync]);
    ledger.copy_ended();
    ledger.owe(Owed::Sync, Fate::Forward);
    answer(&mut ledger, b"G");
    assert!(!ledger.copy_in());
    answer(&mut ledger, b"CZ");
    assert!(ledger.settled().is_some());
}

#[test]
fn copy_data_sent_after_a_failed_copy_is_harmless() {
    let mut ledger = sent(&[Owed::Query]);
    answer(&mut ledger, b"G");
    ledger.on_frame(b'E', None).unwrap();
    ledger.copy_ended();
    ledger.on_frame(b'Z', Some(b'I')).unwrap();
    assert!(ledger.settled().is_some());
}

#[test]
fn asynchronous_messages_may_come_at_any_time() {
    let mut ledger = Ledger::default();
    for kind in *b"NAS" {
        assert_eq!(
            ledger.on_frame(kind, None),
            Ok(Verdict {
                forward: true,
                event: Event::Nothing
            })
        );
    }
    assert!(ledger.on_frame(b'D', None).is_err());
    assert!(ledger.on_frame(b'Z', Some(b'I')).is_err());
}

/// A backend was given back behind Flush, with the batch's implicit transaction open: the portal was gone for its
/// client and the transaction was the next one's.
#[test]
fn a_flushed_batch_is_not_settled_before_its_sync() {
    let mut ledger = sent(&[Owed::Parse, Owed::Describe]);
    answer(&mut ledger, b"1tT");
    assert!(ledger.is_empty() && ledger.batch_open() && ledger.settled().is_none());
    ledger.owe(Owed::Sync, Fate::Forward);
    answer(&mut ledger, b"Z");
    assert!(ledger.settled().is_some());
}

/// A node lost in a COPY by Query left its client skipping to a Sync that never comes in the simple protocol.
#[test]
fn a_copy_by_query_is_no_batch() {
    let mut ledger = sent(&[Owed::Query]);
    answer(&mut ledger, b"G");
    assert!(ledger.copy_in() && !ledger.batch_open());
    assert_eq!(ledger.readies(), 1);
}

/// Two answers went to one request whose settings were applied in the same flight.
#[test]
fn questions_of_our_own_are_not_due_to_the_client() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Query, Fate::Skip);
    ledger.owe(Owed::Query, Fate::Forward);
    assert_eq!(ledger.readies(), 1);
    answer(&mut ledger, b"CZ");
    assert_eq!(ledger.readies(), 1);
    answer(&mut ledger, b"CZ");
    assert_eq!(ledger.readies(), 0);
}

#[test]
fn a_notice_stands_before_its_answer_and_goes_where_the_server_skips() {
    let mut ledger = Ledger::default();
    for owed in [Owed::Parse, Owed::Bind, Owed::Execute] {
        if owed == Owed::Parse {
            ledger.owe(Owed::Notice, Fate::Fake);
            assert!(!ledger.batch_open(), "a notice begins no batch");
        }
        ledger.owe(owed, Fate::Forward);
    }
    ledger.owe(Owed::Sync, Fate::Forward);
    ledger.owe(Owed::Notice, Fate::Fake);
    ledger.owe(Owed::Query, Fate::Forward);
    assert!(ledger.settled().is_none());
    assert_eq!(ledger.next_fake(), Some(Owed::Notice));
    ledger.on_frame(b'E', None).unwrap();
    assert_eq!(ledger.next_fake(), None, "the batch ends first");
    assert_eq!(ledger.notices(), 1);
    ledger.on_frame(b'Z', Some(b'I')).unwrap();
    assert_eq!(ledger.next_fake(), Some(Owed::Notice));
    ledger.on_frame(b'C', None).unwrap();
    ledger.on_frame(b'Z', Some(b'I')).unwrap();
    assert!(ledger.settled().is_some());

    // One in the middle of a batch that fails before it is skipped with what it stands for.
    ledger.owe(Owed::Parse, Fate::Forward);
    ledger.owe(Owed::Notice, Fate::Fake);
    ledger.owe(Owed::Bind, Fate::Forward);
    ledger.on_frame(b'E', None).unwrap();
    assert_eq!((ledger.notices(), ledger.next_fake()), (0, None));
}

/// Replays any sequence of questions as a server would answer it, errors at any place included.
fn serve(questions: &[Owed], fail_at: usize) -> Vec<u8> {
    let (mut out, mut skipping) = (Vec::new(), false);
    for (index, owed) in questions.iter().enumerate() {
        let fails = index == fail_at;
        if skipping && *owed != Owed::Sync {
            continue;
        }
        match owed {
            Owed::Sync => {
                skipping = false;
                out.push(b'Z');
            }
            Owed::Query | Owed::FunctionCall => out.extend_from_slice(if fails { b"EZ" } else { b"CZ" }),
            _ if fails => {
                out.push(b'E');
                skipping = true;
            }
            Owed::Parse => out.push(b'1'),
            Owed::Bind => out.push(b'2'),
            Owed::Describe => out.extend_from_slice(b"tT"),
            Owed::Execute => out.extend_from_slice(b"DDC"),
            Owed::ClosePortal | Owed::CloseStatement => out.push(b'3'),
            Owed::CopyEnd | Owed::Notice => {}
        }
    }
    out
}

fn question() -> impl Strategy<Value = Owed> {
    use Owed::*;
    prop_oneof![
        Just(Parse),
        Just(Bind),
        Just(Describe),
        Just(Execute),
        Just(ClosePortal),
        Just(Sync),
        Just(Query)
    ]
}

proptest! {
    #[test]
    fn every_answer_of_a_server_finds_its_question(mut questions in proptest::collection::vec(question(), 0..40), fail_at in 0usize..60) {
        questions.push(Owed::Sync);
        let mut ledger = sent(&questions);
        let mut answers = serve(&questions, fail_at);
        // FunctionCall is left out of the questions since CommandComplete would not answer it.
        for kind in answers.drain(..) {
            prop_assert!(ledger.settled().is_none());
            prop_assert!(ledger.on_frame(kind, Some(b'I')).is_ok(), "{kind} {questions:?}");
        }
        prop_assert!(ledger.settled().is_some());
        prop_assert_eq!(ledger.readies(), 0);
    }

    #[test]
    fn no_sequence_of_frames_makes_it_panic(questions in proptest::collection::vec(question(), 0..20), frames in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..60)) {
        let mut ledger = sent(&questions);
        for (kind, status) in frames {
            if ledger.on_frame(kind, Some(status)).is_err() { break; }
        }
    }
}

/// A Query between an error and its Sync is not read by the server: the backend is no use to anybody before a Sync.
#[test]
fn a_query_does_not_end_a_failed_batch() {
    let mut ledger = Ledger::default();
    for owed in [Owed::Parse, Owed::Bind, Owed::Execute, Owed::Query] {
        ledger.owe(owed, Fate::Forward);
    }
    ledger.on_frame(msg::PARSE_COMPLETE, None).unwrap();
    ledger.on_frame(msg::BIND_COMPLETE, None).unwrap();
    ledger.on_frame(msg::ERROR_RESPONSE, None).unwrap();
    assert!(ledger.is_empty() && ledger.skips_until_sync());
    assert!(ledger.batch_open() && ledger.settled().is_none());
    ledger.owe(Owed::Sync, Fate::Forward);
    ledger.on_frame(msg::READY_FOR_QUERY, Some(b'I')).unwrap();
    assert!(ledger.settled().is_some() && ledger.readies() == 0);
}

/// Of a question behind a request the client gets the ReadyForQuery, and of the request everything else.
#[test]
fn a_question_behind_a_request_readies_the_client() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Query, Fate::ForwardUnready);
    ledger.owe(Owed::Query, Fate::SkipReady);
    assert_eq!(ledger.readies(), 1);
    let forwards = |ledger: &mut Ledger, kind| ledger.on_frame(kind, Some(b'I')).unwrap().forward;
    assert!(!forwards(&mut ledger, msg::PARAMETER_STATUS));
    assert!(forwards(&mut ledger, msg::COMMAND_COMPLETE));
    assert!(!forwards(&mut ledger, msg::READY_FOR_QUERY));
    assert!(!forwards(&mut ledger, msg::DATA_ROW));
    assert!(!forwards(&mut ledger, msg::ERROR_RESPONSE));
    assert!(forwards(&mut ledger, msg::READY_FOR_QUERY));
    assert!(ledger.settled().is_some() && ledger.readies() == 0);
}

#[test]
fn a_query_that_is_ignored_is_over() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Query, Fate::Skip);
    for owed in [Owed::Query, Owed::Bind, Owed::Query, Owed::Sync, Owed::Query] {
        ledger.owe(owed, Fate::Forward);
    }
    assert_eq!((ledger.queries_sent(), ledger.queries_over()), (3, 0));
    ledger.on_frame(msg::READY_FOR_QUERY, Some(b'I')).unwrap();
    assert_eq!(ledger.queries_over(), 0, "it is Halyard's own");
    ledger.on_frame(msg::ERROR_RESPONSE, None).unwrap();
    assert_eq!(ledger.queries_over(), 0, "it is over with its ReadyForQuery");
    ledger.on_frame(msg::READY_FOR_QUERY, Some(b'I')).unwrap();
    assert_eq!(ledger.queries_over(), 1);
    ledger.on_frame(msg::ERROR_RESPONSE, None).unwrap();
    assert_eq!(ledger.queries_over(), 2, "the one before the Sync");
}

/// An empty statement is taken in a failed block as well, and ends nothing.
#[test]
fn what_runs_to_its_end_ends_a_failed_block() {
    let mut ledger = Ledger::default();
    ledger.owe(Owed::Query, Fate::Forward);
    ledger.on_frame(msg::ERROR_RESPONSE, None).unwrap();
    ledger.on_frame(msg::READY_FOR_QUERY, Some(b'E')).unwrap();
    assert!(ledger.in_failed_block());
    for (answer, failed) in [(msg::EMPTY_QUERY_RESPONSE, true), (msg::COMMAND_COMPLETE, false)] {
        ledger.owe(Owed::Execute, Fate::Forward);
        ledger.on_frame(answer, None).unwrap();
        assert_eq!(ledger.in_failed_block(), failed);
    }
    ledger.owe(Owed::Sync, Fate::Forward);
    ledger.on_frame(msg::READY_FOR_QUERY, Some(b'E')).unwrap();
    assert!(ledger.in_failed_block(), "it has failed once more");
}
