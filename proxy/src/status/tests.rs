use super::*;

#[test]
fn people_get_two_aligned_tables() {
    assert_eq!(
        example().to_text(),
        "\
halyard 0.1.0, up 1 h 1 min; one primary, routing table 7
clients: 2 active, 90 idle, 0 idle in transaction, 0 waiting, 0 held, 0 authenticating (at most 10000)

NODE   ADDRESS         ROLE     UP   READS  TIMELINE  LAG            REASON
node1  127.0.0.1:5432  primary  yes  no     3         -
node2  127.0.0.1:5433  standby  yes  yes    3         8192 B, 0.2 s
node3  127.0.0.1:5434  unknown  no   no     -         -              connection refused

NODE   DATABASE  USER  ACTIVE  IDLE  CONNECTING  SIZE  WAITING
node2  app\"db    app   1       4     0           20    2
node2  other     app   1       3     0           20    0
"
    );
}

#[test]
fn what_a_proxy_answers_is_what_the_command_reads() {
    let json = serde_json::to_string(&example()).expect("it can be written");
    assert_eq!(
        serde_json::from_str::<Status>(&json).expect("it can be read"),
        example()
    );
    assert!(
        json.contains("\"role\":\"primary\"") && json.contains("\"lag_bytes\":8192"),
        "{json}"
    );
}

#[test]
fn a_name_cannot_write_to_the_terminal() {
    let mut status = example();
    status.nodes[0].reason = Some("\u{1b}[2Jgone\n".to_owned());
    assert!(!status.to_text().contains('\u{1b}'));
    assert!(status.to_text().contains("?[2Jgone?"));
}

#[test]
fn uptimes_are_short() {
    for (seconds, text) in [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (7260, "2 h 1 min"),
        (90_000, "1 d 1 h"),
    ] {
        assert_eq!(duration_text(seconds), text);
    }
}
