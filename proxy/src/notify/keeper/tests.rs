use super::*;
use crate::notify::hub::tests::{asked as sql_of, channel, hub_with, next_question};

fn refused(code: &[u8; 5]) -> Said {
    Said::Refused(Report::error(SqlState(*code), "no"))
}

/// Lets the server say what it says to a question; whether that answered it.
fn said(hub: &Hub, question: Question, all: Vec<Said>) -> bool {
    let mut asked = Some(Asked::new(question, Instant::now()));
    for said in all {
        heed(hub, &mut asked, said).unwrap();
    }
    asked.is_none()
}

#[test]
fn a_question_is_answered_when_the_mark_behind_it_is() {
    let (hub, mailboxes) = hub_with(&["a", "b"]);
    let question = next_question(&hub);
    let answered = said(
        &hub,
        question,
        vec![Said::Mark, Said::Ready, Said::Done, Said::Done, Said::Ready],
    );
    assert!(!answered, "ReadyForQuery is not what counts");
    assert!(!hub.hears(0, &[channel("a")]));
    assert!(mailboxes.iter().all(|mailbox| !mailbox.is_waiting()));
}

/// A refused statement took the connection with it, and with that what everybody listened to.
#[test]
fn of_a_refused_question_each_channel_is_asked_alone() {
    let (hub, _mailboxes) = hub_with(&["", "a"]);
    let question = next_question(&hub);
    assert_eq!(sql_of(&question), "LISTEN \"\";LISTEN \"a\";");
    let answer = || {
        vec![
            Said::Mark,
            Said::Ready,
            refused(b"42601"),
            Said::Ready,
            Said::Mark,
            Said::Ready,
        ]
    };
    assert!(said(&hub, question, answer()));
    let question = next_question(&hub);
    assert_eq!(sql_of(&question), "LISTEN \"\";");
    assert!(said(&hub, question, answer()));
    let question = next_question(&hub);
    assert_eq!(sql_of(&question), "LISTEN \"a\";");
    let done = vec![
        Said::Mark,
        Said::Ready,
        Said::Done,
        Said::Ready,
        Said::Mark,
        Said::Ready,
    ];
    assert!(said(&hub, question, done));
    assert!(hub.hears(1, &[channel("a")]) && !hub.hears(0, &[channel("")]));
}

/// A full queue of notifications, a standby that was a primary: whoever notifies gets no answer, and the others are heard on.
#[test]
fn a_refused_notify_costs_nobody_else_anything() {
    for code in [b"54000", b"25006"] {
        let (hub, _mailboxes) = hub_with(&["a"]);
        let mut passed = hub.notify(&channel("b"));
        let question = next_question(&hub);
        assert_eq!(sql_of(&question), "NOTIFY \"b\";");
        let answer = vec![
            Said::Mark,
            Said::Ready,
            refused(code),
            Said::Ready,
            Said::Mark,
            Said::Ready,
        ];
        assert!(said(&hub, question, answer));
        assert_eq!(passed.try_recv(), Ok(()));
        assert_eq!(sql_of(&next_question(&hub)), "LISTEN \"a\";");
    }
}

#[test]
fn an_error_that_is_not_about_what_was_asked_ends_the_connection() {
    let (hub, _mailboxes) = hub_with(&["a"]);
    for code in [b"25006", b"57014", b"53200", b"22P05"] {
        assert!(heed(&hub, &mut None, refused(code)).is_err());
    }
}
