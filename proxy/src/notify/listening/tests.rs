#![allow(clippy::unwrap_used)]

use std::pin::pin;

use super::*;
use crate::notify::hub::Question;
use crate::notify::hub::tests::{asked, next_question, notification};

fn listening(hub: &Arc<Hub>, id: u64, channels: &[&str]) -> Listening {
    let mailbox = Arc::new(Mailbox::new(Arc::default(), 1 << 20));
    let mut listening = Listening::new(Arc::clone(hub), id, mailbox, 10);
    listening.add(channels.iter().map(|name| name.as_bytes().to_vec()));
    listening
}

/// A client of two hubs that hears a channel in the one that is earlier, and is to hear it in the other.
fn two_sides() -> (Listening, Listening) {
    let (utf8, latin1) = (Hub::new("database", "UTF8"), Hub::new("database", "LATIN1"));
    let earlier = listening(&Arc::new(utf8), 1, &["a"]);
    let now = listening(&Arc::new(latin1), 2, &["a"]);
    for hub in [&earlier.hub, &now.hub] {
        hub.answered(next_question(hub));
    }
    (earlier, now)
}

/// The server tells a hub of these.
fn tell(listening: &Listening, payloads: &[&str]) {
    for payload in payloads {
        listening.hub.dispatch(notification("a", payload));
    }
}

/// Payloads that the client is told, and the words of warnings.
fn told(listening: &Listening) -> Vec<String> {
    let mut out = Vec::new();
    listening.take_mail(&mut out, 1 << 20);
    let mut told = Vec::new();
    while !out.is_empty() {
        let length = 1 + u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize;
        let frame: Vec<u8> = out.drain(..length).collect();
        let words: Vec<_> = frame[5..]
            .split(|&byte| byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        told.push(match frame[0] {
            b'A' => words[words.len() - 2].to_string(),
            _ => words
                .iter()
                .find(|word| word.starts_with('M'))
                .unwrap()
                .to_string(),
        });
    }
    told
}

/// Lets it go as far as it can without a word of a server.
async fn goes<F: Future<Output = bool>>(change: &mut std::pin::Pin<&mut F>) -> Option<bool> {
    timeout(2 * MEETING_PAUSE, change.as_mut()).await.ok()
}

/// What it has a hub asked next.
async fn question_of<F: Future<Output = bool>>(change: &mut std::pin::Pin<&mut F>, hub: &Hub) -> Question {
    loop {
        assert_eq!(goes(change).await, None);
        if let Some(question) = hub.question(false) {
            return question;
        }
    }
}

/// How it ends, with a hub that is answered whatever it asks.
async fn ends<F: Future<Output = bool>>(change: &mut std::pin::Pin<&mut F>, hub: &Hub) -> bool {
    loop {
        if let Some(changed) = goes(change).await {
            return changed;
        }
        if let Some(question) = hub.question(false) {
            hub.answered(question);
        }
    }
}

/// Lets both hear the turning point, and one notify it; its name.
async fn turning_point_of<F: Future<Output = bool>>(
    change: &mut std::pin::Pin<&mut F>,
    [earlier, now]: [&Listening; 2],
) -> (String, Question) {
    for side in [now, earlier] {
        let question = question_of(change, &side.hub).await;
        assert!(asked(&question).starts_with("LISTEN \"halyard:turn:"));
        side.hub.answered(question);
    }
    let question = question_of(change, &now.hub).await;
    let sql = asked(&question);
    let name = sql
        .strip_prefix("NOTIFY \"")
        .unwrap()
        .strip_suffix("\";")
        .unwrap();
    (name.to_owned(), question)
}

/// A server tells one connection of a commit and then the other: between the two it answered whatever the other asked, and
/// what it had not told there yet was lost.
#[tokio::test]
async fn what_one_connection_is_told_later_than_the_other_is_neither_lost_nor_told_twice() {
    let (earlier, now) = two_sides();
    tell(&earlier, &["1"]);
    tell(&now, &["1", "2", "3"]);
    {
        let mut change = pin!(now.change_over(&earlier));
        let (name, question) = turning_point_of(&mut change, [&earlier, &now]).await;
        tell(&now, &["4"]);
        now.hub.dispatch(notification(&name, ""));
        tell(&now, &["5"]);
        now.hub.answered(question);
        // It is behind still, whatever it answers.
        for payload in ["2", "3", "4"] {
            let question = question_of(&mut change, &earlier.hub).await;
            earlier.hub.answered(question);
            tell(&earlier, &[payload]);
        }
        let question = question_of(&mut change, &earlier.hub).await;
        earlier.hub.dispatch(notification(&name, ""));
        tell(&earlier, &["5", "6"]);
        earlier.hub.answered(question);
        assert!(ends(&mut change, &earlier.hub).await);
    }
    tell(&earlier, &["7"]);
    tell(&now, &["6", "7"]);
    assert_eq!(told(&earlier), ["1", "2", "3", "4"]);
    assert_eq!(told(&now), ["5", "6", "7"]);
    for side in [&earlier, &now] {
        assert!(asked(&next_question(&side.hub)).contains("UNLISTEN \"halyard:turn:"));
    }
}

/// The client would be told of it behind everything, if at all.
#[tokio::test]
async fn what_was_missed_before_the_turning_point_is_told_first() {
    let (earlier, now) = two_sides();
    {
        let mut change = pin!(now.change_over(&earlier));
        let (name, question) = turning_point_of(&mut change, [&earlier, &now]).await;
        now.hub.dispatch(notification(&name, ""));
        now.hub.answered(question);
        assert_eq!(goes(&mut change).await, None);
        earlier.hub.dispatch(notification(&name, ""));
        earlier.mailbox.miss();
        tell(&now, &["1"]);
        assert!(ends(&mut change, &earlier.hub).await);
    }
    assert_eq!(told(&earlier), [""; 0]);
    assert_eq!(told(&now), ["Mnotifications may have been lost", "1"]);
}

/// Nothing is left of the attempt, and the earlier hub is heard as before.
#[tokio::test]
async fn a_turning_point_that_the_server_refuses_is_given_up() {
    let (earlier, now) = two_sides();
    {
        let mut change = pin!(now.change_over(&earlier));
        let (_, question) = turning_point_of(&mut change, [&earlier, &now]).await;
        assert!(question.notifies);
        now.hub.refused(question);
        assert!(!ends(&mut change, &earlier.hub).await);
    }
    tell(&earlier, &["1"]);
    assert_eq!(told(&earlier), ["1"]);
    for side in [&earlier, &now] {
        assert!(asked(&next_question(&side.hub)).contains("UNLISTEN \"halyard:turn:"));
    }
}
