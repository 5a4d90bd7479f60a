use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::config::{EngineConfig, Secret};

/// What Patroni 3.0 answers, a failover's stages.
const SETTLED: &str = r#"{"members": [
    {"name": "a", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:8008/patroni", "host": "10.0.0.1",
     "port": 5432, "timeline": 3, "tags": {"clonefrom": true}},
    {"name": "b", "role": "sync_standby", "state": "streaming", "api_url": "http://127.0.0.1:8009/patroni",
     "host": "10.0.0.2", "port": 5432, "timeline": 3, "lag": 0},
    {"name": "c", "role": "replica", "state": "in archive recovery", "api_url": "http://127.0.0.1:8010/patroni",
     "host": "10.0.0.3", "port": 5432, "timeline": 3, "lag": "unknown"}],
    "scope": "demo", "pause": true}"#;
const LEADERLESS: &str = r#"{"members": [
    {"name": "a", "role": "replica", "state": "stopped", "host": "10.0.0.1", "port": 5432},
    {"name": "b", "role": "replica", "state": "streaming", "host": "10.0.0.2", "port": 5432, "timeline": 3, "lag": 0},
    {"name": "c", "role": "replica", "state": "creating replica", "api_url": "http://127.0.0.1:8010/patroni"}],
    "scope": "demo"}"#;

fn nodes() -> Vec<NodeConfig> {
    let node = |name: &str, host: &str| NodeConfig {
        name: name.to_owned(),
        host: host.to_owned(),
        port: 5432,
    };
    // The third is known by another address: its name says who it is.
    vec![node("x", "10.0.0.2"), node("y", "10.0.0.1"), node("c", "db3")]
}

fn told(json: &str) -> Answer {
    answer(Instant::now(), &serde_json::from_str(json).unwrap(), &nodes())
}

#[test]
fn the_holder_of_the_leader_key_is_named() {
    let answer = told(SETTLED);
    assert_eq!(answer.primary, Some(NodeId(1)));
    let places: Vec<_> = answer.nodes.iter().map(|node| node.node).collect();
    assert_eq!(places, [Some(NodeId(1)), Some(NodeId(0)), Some(NodeId(2))]);
}

#[test]
fn without_a_leader_nobody_is_named() {
    assert_eq!(told(LEADERLESS).primary, None);
    assert_eq!(
        told(&SETTLED.replace("sync_standby", "leader")).primary,
        None,
        "two of them"
    );
    assert_eq!(
        told(&SETTLED.replace("\"leader\"", "\"standby_leader\"")).primary,
        None
    );
    assert_eq!(told(r#"{"members": []}"#).primary, None);
}

#[test]
fn only_an_answer_of_status_200_counts() {
    assert_eq!(body(b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{}").unwrap(), b"{}");
    assert!(matches!(
        body(b"HTTP/1.0 503 Service Unavailable\r\n\r\n{}"),
        Err(Silence::Status(503))
    ));
    for broken in [
        &b""[..],
        b"HTTP/1.0 200 OK\r\n",
        b"FTP 200 OK\r\n\r\n{}",
        b"HTTP/1.0\r\n\r\n",
        b"\xff\r\n\r\n",
    ] {
        assert!(matches!(body(broken), Err(Silence::NotHttp)), "{broken:?}");
    }
}

/// A member that gives each one who asks the next answer of its script, and then no more connections.
async fn member(script: Vec<(u16, &'static str)>) -> (PatroniMember, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::channel(16);
    tokio::spawn(async move {
        for (status, json) in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            request.truncate(count);
            asked.send(String::from_utf8(request).unwrap()).await.unwrap();
            let head = format!(
                "HTTP/1.0 {status} X\r\nServer: BaseHTTP/0.6\r\nContent-Type: application/json\r\n\r\n"
            );
            stream
                .write_all(&[head.as_bytes(), json.as_bytes()].concat())
                .await
                .unwrap();
        }
    });
    let host = "127.0.0.1".to_owned();
    (PatroniMember { host, port }, requests)
}

fn start(members: Vec<PatroniMember>) -> (watch::Receiver<AuthorityView>, Arc<Notify>) {
    let engine = PatroniConfig { members };
    let mut config = Config::new(nodes(), "halyard", Secret::default(), "postgres");
    config.engine = EngineConfig::Patroni(engine.clone());
    let (view, heard) = watch::channel(AuthorityView::Pending);
    let look = Arc::new(Notify::new());
    let adapter = Adapter {
        engine,
        config: Arc::new(config),
        look: Arc::clone(&look),
        view,
    };
    tokio::spawn(adapter.run());
    (heard, look)
}

async fn until(heard: &mut watch::Receiver<AuthorityView>, wanted: impl Fn(&AuthorityView) -> bool) {
    let waiting = heard.wait_for(wanted);
    timeout(Duration::from_secs(10), waiting)
        .await
        .expect("in time")
        .unwrap();
}

fn names(view: &AuthorityView, node: Option<NodeId>) -> bool {
    matches!(view, AuthorityView::Answers(answer) if answer.primary == node)
}

#[tokio::test]
async fn it_is_followed_through_a_failover_and_asked_again_at_once_when_told_to_look() {
    let after: &'static str = Box::leak(
        SETTLED
            .replace("\"leader\"", "\"replica\"")
            .replace("sync_standby", "leader")
            .into_boxed_str(),
    );
    let (member, mut requests) = member(vec![(200, SETTLED), (200, LEADERLESS), (200, after)]).await;
    let (mut heard, look) = start(vec![member]);
    until(&mut heard, |view| names(view, Some(NodeId(1)))).await;
    look.notify_one();
    until(&mut heard, |view| names(view, None)).await;
    look.notify_one();
    until(&mut heard, |view| names(view, Some(NodeId(0)))).await;
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("GET /cluster HTTP/1.0\r\n"), "{request}");
    look.notify_one();
    until(&mut heard, |view| matches!(view, AuthorityView::Silent { .. })).await;
}

#[tokio::test]
async fn another_member_is_asked_where_one_does_not_answer() {
    let (cut_off, _) = member(vec![(503, "{}"), (503, "{}")]).await;
    let (talks_nonsense, _) = member(vec![(200, "not json")]).await;
    let (answers, _requests) = member(vec![(200, SETTLED), (200, LEADERLESS)]).await;
    let (mut heard, look) = start(vec![cut_off, talks_nonsense, answers]);
    until(&mut heard, |view| names(view, Some(NodeId(1)))).await;
    look.notify_one();
    until(&mut heard, |view| names(view, None)).await;
}
