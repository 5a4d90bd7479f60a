use super::*;
use crate::wire::tagged;

/// A hub's state and its clients' mailboxes, without groups: nothing here logs in.
fn want(state: &mut State, id: u64, name: &str) -> Arc<Mailbox> {
    let mailbox = Arc::new(Mailbox::new(Arc::default(), 1 << 20));
    state.want(id, Arc::clone(&mailbox), &channel(name));
    mailbox
}

pub(in crate::notify) fn channel(name: &str) -> Channel {
    name.as_bytes().into()
}

pub(in crate::notify) fn asked(question: &Question) -> String {
    String::from_utf8(question.sql.clone()).unwrap()
}

fn hub(state: State) -> Hub {
    Hub {
        state: Mutex::new(state),
        ..Hub::new("database", "UTF8")
    }
}

/// A hub with a client for each of the channels, numbered from 0.
pub(in crate::notify) fn hub_with(names: &[&str]) -> (Hub, Vec<Arc<Mailbox>>) {
    let mut state = State::default();
    let mailboxes = names.iter().zip(0..);
    let mailboxes = mailboxes.map(|(name, id)| want(&mut state, id, name)).collect();
    (hub(state), mailboxes)
}

#[track_caller]
pub(in crate::notify) fn next_question(hub: &Hub) -> Question {
    hub.question(false).expect("there is something to ask for")
}

pub(in crate::notify) fn notification(name: &str, payload: &str) -> Notification {
    let mut frame = Vec::new();
    tagged(&mut frame, b'A', |out| {
        out.extend_from_slice(&7_i32.to_be_bytes());
        out.extend_from_slice(format!("{name}\0{payload}\0").as_bytes());
    });
    Notification::new(&frame).unwrap()
}

#[test]
fn a_channel_is_heard_when_the_server_has_answered_and_not_before() {
    let mut state = State::default();
    want(&mut state, 1, "a");
    want(&mut state, 2, "a");
    assert!(!state.hears(1, &[channel("a")]));
    let question = state.question();
    assert_eq!(
        asked(&question),
        "LISTEN \"a\";",
        "asked for once, whoever wants it"
    );
    assert!(!state.hears(1, &[channel("a")]));
    state.answered(&question.told);
    assert!(state.hears(1, &[channel("a")]) && state.hears(2, &[channel("a")]));
    assert!(!state.hears(1, &[channel("a"), channel("b")]));
    assert_eq!(asked(&state.question()), "");
}

/// A client that comes while the last one's UNLISTEN is on its way must not be told that its channel is heard.
#[test]
fn a_channel_that_is_given_up_and_wanted_again_is_asked_for_again() {
    let mut state = State::default();
    want(&mut state, 1, "a");
    let question = state.question();
    state.answered(&question.told);
    let hub = hub(state);
    hub.unwant(1, &[channel("a")]);
    let question = hub.question(false).unwrap();
    assert_eq!(asked(&question), "UNLISTEN \"a\";");
    want(&mut hub.state.lock(), 2, "a");
    assert!(!hub.hears(2, &[channel("a")]));
    hub.answered(question);
    assert!(!hub.hears(2, &[channel("a")]));
    let question = hub.question(false).unwrap();
    assert_eq!(asked(&question), "LISTEN \"a\";");
    hub.answered(question);
    assert!(hub.hears(2, &[channel("a")]));
}

#[test]
fn a_channel_given_up_before_it_was_asked_for_costs_nothing() {
    let mut state = State::default();
    want(&mut state, 1, "a");
    let hub = hub(state);
    hub.unwant(1, &[channel("a")]);
    assert!(hub.question(false).is_none());
    assert_eq!(hub.usage(), (0, 0));
}

#[test]
fn one_given_up_while_it_is_asked_for_is_unlistened_afterwards() {
    let mut state = State::default();
    want(&mut state, 1, "a");
    let hub = hub(state);
    let question = hub.question(false).unwrap();
    hub.unwant(1, &[channel("a")]);
    hub.answered(question);
    assert_eq!(asked(&hub.question(false).unwrap()), "UNLISTEN \"a\";");
}

#[test]
fn what_is_asked_at_a_time_is_bounded() {
    let mut state = State::default();
    for number in 0..2000 {
        want(&mut state, 1, &format!("channel {number:040}"));
    }
    let mut rounds = 0;
    while !state.unsettled.is_empty() {
        let question = state.question();
        assert!(question.sql.len() < QUESTION_SIZE_MAX + 200);
        state.answered(&question.told);
        rounds += 1;
    }
    assert!(rounds > 1);
    assert!(
        state
            .channels
            .values()
            .all(|listeners| listeners.known == Known::Yes)
    );
}

#[test]
fn after_a_loss_everything_is_asked_for_again_and_who_was_heard_has_missed() {
    let mut state = State::default();
    want(&mut state, 1, "a");
    let question = state.question();
    state.answered(&question.told);
    want(&mut state, 2, "b");
    state.lost();
    assert!(!state.hears(1, &[channel("a")]));
    assert_eq!(
        state.missed,
        BTreeSet::from([1]),
        "nobody had told the second that it is heard"
    );
    assert_eq!(asked(&state.question()), "LISTEN \"a\";LISTEN \"b\";");
}

#[test]
fn everybody_gets_what_it_wants_and_nothing_else() {
    let mut state = State::default();
    let one = want(&mut state, 1, "a");
    let other = want(&mut state, 2, "b");
    let question = state.question();
    state.answered(&question.told);
    let hub = hub(state);
    hub.dispatch(notification("a", "x"));
    hub.dispatch(notification("c", "x"));
    assert!(one.is_waiting());
    assert!(!other.is_waiting());
}

#[test]
fn an_echo_waits_for_the_question_behind_it() {
    let hub = hub(State::default());
    assert!(hub.question(false).is_none());
    let first = hub.question(true).unwrap();
    let mut echo = hub.echo();
    hub.answered(first);
    assert!(echo.try_recv().is_err(), "the question was put before");
    let second = hub.question(false).unwrap();
    hub.answered(second);
    assert!(echo.try_recv().is_ok());
    let mut lost = hub.echo();
    hub.lost();
    assert_eq!(lost.try_recv(), Err(oneshot::error::TryRecvError::Closed));
}

/// What arrives between the wish and the answer was committed before the client listened.
#[test]
fn nobody_is_told_of_what_was_before() {
    let mut state = State::default();
    let first = want(&mut state, 1, "a");
    let hub = hub(state);
    hub.dispatch(notification("a", "of an earlier registration"));
    let question = hub.question(false).unwrap();
    hub.dispatch(notification("a", "of an earlier registration"));
    hub.answered(question);
    assert!(!first.is_waiting());
    let second = want(&mut hub.state.lock(), 2, "a");
    let question = hub.question(false).unwrap();
    assert_eq!(
        asked(&question),
        "",
        "the server listens already; it is asked all the same"
    );
    hub.dispatch(notification("a", "x"));
    assert!(first.is_waiting() && !second.is_waiting());
    assert!(!hub.hears(2, &[channel("a")]));
    hub.answered(question);
    hub.dispatch(notification("a", "y"));
    assert!(second.is_waiting() && hub.hears(2, &[channel("a")]));
}

/// Everybody on the database and in the encoding heard nothing for as long as somebody waited for such a name.
#[test]
fn a_refused_channel_is_nobody_elses_trouble() {
    let (hub, _mailboxes) = hub_with(&["", "a", "b"]);
    hub.refused(next_question(&hub));
    for name in ["", "a", "b"] {
        let question = next_question(&hub);
        assert_eq!(asked(&question), format!("LISTEN \"{name}\";"));
        if name.is_empty() {
            hub.refused(question);
        } else {
            hub.answered(question);
        }
    }
    assert!(hub.question(false).is_none());
    assert!(hub.state.lock().is_done(0, &[channel("")]), "it is let through");
    assert!(!hub.hears(0, &[channel("")]));
    assert!(hub.hears(1, &[channel("a")]) && hub.hears(2, &[channel("b")]));
    // Another that asks for it is let through at once.
    want(&mut hub.state.lock(), 3, "");
    assert!(hub.question(false).is_none());
    assert!(hub.state.lock().is_done(3, &[channel("")]));
    // Another connection is asked once, and apart from the others.
    hub.lost();
    let question = next_question(&hub);
    assert_eq!(asked(&question), "LISTEN \"\";");
    hub.refused(question);
    assert_eq!(asked(&next_question(&hub)), "LISTEN \"a\";LISTEN \"b\";");
    hub.unwant(0, &[channel("")]);
    hub.unwant(3, &[channel("")]);
    assert_eq!(hub.usage().1, 2, "it goes with the last that wanted it");
}

#[test]
fn what_was_given_up_in_a_refused_question_is_given_up_again() {
    let (hub, _mailboxes) = hub_with(&["a", "b"]);
    hub.answered(next_question(&hub));
    hub.unwant(0, &[channel("a")]);
    hub.unwant(1, &[channel("b")]);
    want(&mut hub.state.lock(), 2, "");
    let question = next_question(&hub);
    assert_eq!(asked(&question), "LISTEN \"\";UNLISTEN \"a\";UNLISTEN \"b\";");
    want(&mut hub.state.lock(), 3, "b");
    hub.refused(question);
    let mut alone = Vec::new();
    for _ in 0..3 {
        let question = next_question(&hub);
        alone.push(asked(&question));
        if alone.len() == 1 {
            hub.refused(question);
        } else {
            hub.answered(question);
        }
    }
    assert_eq!(alone, ["LISTEN \"\";", "UNLISTEN \"a\";", "LISTEN \"b\";"]);
    assert!(hub.question(false).is_none() && hub.hears(3, &[channel("b")]));
}

/// It was told before: who looked at its tables then missed what came until its channels were heard.
#[test]
fn who_is_heard_late_is_told_when_it_is_heard() {
    let (hub, _mailboxes) = hub_with(&["a"]);
    let question = next_question(&hub);
    want(&mut hub.state.lock(), 1, "b");
    hub.miss_until_heard(1);
    hub.answered(question);
    assert_eq!(
        hub.state.lock().missed,
        BTreeSet::from([1]),
        "not before it is heard"
    );
    hub.answered(next_question(&hub));
    assert!(hub.hears(1, &[channel("b")]) && hub.state.lock().missed.is_empty());
}
