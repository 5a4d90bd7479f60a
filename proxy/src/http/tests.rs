use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use super::*;
use crate::status::example;

/// A proxy that is not there.
struct Scenery {
    recorder: PrometheusRecorder,
    draining: AtomicBool,
    scrapes: AtomicU64,
    panics: AtomicBool,
}

impl Outlook for Scenery {
    fn ready(&self) -> Result<(), Vec<String>> {
        match self.draining.load(Ordering::Relaxed) {
            true => Err(vec!["draining".to_owned(), "no \"primary\"".to_owned()]),
            false => Ok(()),
        }
    }

    fn status(&self) -> Status {
        assert!(!self.panics.load(Ordering::Relaxed), "as the test wants it");
        example()
    }

    fn events(&self) -> Vec<Event> {
        vec![Event {
            number: 3,
            at: std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            kind: "topology",
            node: Some("node1".to_owned()),
            what: "one primary on timeline 4".to_owned(),
            epoch: 7,
        }]
    }

    fn publish_metrics(&self) {
        let scrapes = self.scrapes.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::with_local_recorder(&self.recorder, || {
            metrics::counter!("test_scrapes_total").absolute(scrapes);
        });
    }
}

/// A server on its own thread, until it is dropped.
struct Server {
    address: SocketAddr,
    scenery: Arc<Scenery>,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let scenery = Arc::new(Scenery {
            recorder: PrometheusBuilder::new().build_recorder(),
            draining: AtomicBool::new(false),
            scrapes: AtomicU64::new(0),
            panics: AtomicBool::new(false),
        });
        let shutdown = CancellationToken::new();
        let (tell, told) = std::sync::mpsc::channel();
        let (outlook, stop) = (Arc::clone(&scenery), shutdown.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = bind("127.0.0.1:0".parse().expect("an address"))
                    .await
                    .expect("a free port");
                tell.send(listener.local_addr().expect("it is bound"))
                    .expect("the test waits");
                let metrics = outlook.recorder.handle();
                serve(listener, outlook, metrics, stop).await;
            });
        });
        let address = told.recv().expect("the server started");
        Self {
            address,
            scenery,
            shutdown,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(self.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a limit");
        stream
    }

    /// Sends `request` as it stands and reads until the server closes.
    fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn get(&self, path: &str) -> String {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let ended = self.thread.take().expect("dropped once").join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the server ends when told to"
        );
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[test]
fn each_page_answers() {
    let server = Server::start();
    let live = server.get("/livez");
    assert!(
        live.starts_with("HTTP/1.1 200 OK\r\n") && live.contains("connection: close"),
        "{live}"
    );

    let status = server.get("/status");
    assert!(status.contains("content-type: application/json"), "{status}");
    assert_eq!(
        serde_json::from_str::<Status>(body(&status)).expect("JSON"),
        example()
    );

    let cluster = server.get("/cluster");
    let cluster: serde_json::Value = serde_json::from_str(body(&cluster)).expect("JSON");
    let leaders = cluster["members"].as_array().expect("members").iter();
    let leaders: Vec<_> = leaders.filter(|member| member["role"] == "leader").collect();
    assert_eq!(leaders.len(), 1, "{cluster}");
    assert_eq!(
        (&leaders[0]["name"], &leaders[0]["state"]),
        (&"node1".into(), &"running".into())
    );
    assert_eq!(cluster["events"][0]["what"], "one primary on timeline 4");
    assert_eq!(cluster["events"][0]["at"], 1.5);

    let metrics = server.get("/metrics?x=1");
    assert!(
        metrics.contains("content-type: text/plain; version=0.0.4"),
        "{metrics}"
    );
    for line in [
        "test_scrapes_total 1",
        "halyard_routing_table_epoch 7",
        "process_threads ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(
        server.get("/metrics").contains("test_scrapes_total 2"),
        "each scrape is fresh"
    );
}

#[test]
fn ready_means_that_clients_should_come() {
    let server = Server::start();
    let ready = server.get("/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 200 ") && body(&ready) == r#"{"ready":true}"#,
        "{ready}"
    );
    server.scenery.draining.store(true, Ordering::Relaxed);
    let ready = server.get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert_eq!(
        body(&ready),
        r#"{"ready":false,"reasons":["draining","no \"primary\""]}"#
    );
    assert!(
        server.get("/livez").starts_with("HTTP/1.1 200 "),
        "it lives all the same"
    );
}

#[test]
fn what_is_not_offered_is_refused() {
    let server = Server::start();
    let head = server.exchange("HEAD /livez HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && body(&head).is_empty(),
        "{head}"
    );
    for (request, status) in [
        ("GET /other HTTP/1.1\r\nHost: test\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: test\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\nHost: test\r\n\r\n", "405"),
        (
            "POST /status HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx",
            "405",
        ),
        (
            "GET /status HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx",
            "413",
        ),
        (
            "GET /status HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            "413",
        ),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = server.exchange(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}\n{answer}"
        );
    }
    assert!(
        server
            .exchange("PUT /readyz HTTP/1.1\r\nHost: test\r\n\r\n")
            .contains("allow: GET, HEAD")
    );
}

#[test]
fn one_connection_carries_one_request() {
    let server = Server::start();
    let request = "GET /livez HTTP/1.1\r\nHost: test\r\n\r\n";
    assert_eq!(
        server
            .exchange(&request.repeat(2))
            .matches("HTTP/1.1 200")
            .count(),
        1
    );
}

#[test]
fn an_oversize_head_is_refused() {
    let server = Server::start();
    let long = format!(
        "GET /livez HTTP/1.1\r\nHost: test\r\nX: {}\r\n\r\n",
        "x".repeat(HEAD_SIZE_MAX)
    );
    let many = format!(
        "GET /livez HTTP/1.1\r\nHost: test\r\n{}\r\n",
        "X: y\r\n".repeat(HEADERS_MAX)
    );
    for request in [long, many] {
        let mut stream = server.connect();
        // The server may close while the rest is still on its way; what it said before is in the buffer.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = vec![0; 64];
        let count = stream.read(&mut answer).expect("answered");
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[test]
fn a_slow_head_is_cut_off_and_holds_nobody_up() {
    let server = Server::start();
    let start = Instant::now();
    let mut slow = server.connect();
    slow.write_all(b"GET /livez HTTP/1.1\r\n").expect("written");
    assert!(server.get("/livez").starts_with("HTTP/1.1 200 "));
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    let took = start.elapsed();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "half a head is no request");
    assert!(
        (HEAD_TIME_MAX..HEAD_TIME_MAX * 3).contains(&took),
        "closed after {took:?}"
    );
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let server = Server::start();
    let held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| server.connect()).collect();
    let mut beyond = server.connect();
    let mut answer = String::new();
    beyond.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    let base = format!("http://{}", server.address);
    // Refused connections may end in a reset, which is no answer either.
    while !fetch(&base, "/livez", Duration::from_secs(5)).is_ok_and(|answer| answer.status == 200) {
        assert!(Instant::now() < deadline, "places come back");
    }
}

#[test]
fn a_bug_in_a_page_costs_that_page_alone() {
    let server = Server::start();
    server.scenery.panics.store(true, Ordering::Relaxed);
    assert!(server.get("/status").starts_with("HTTP/1.1 500 "));
    assert!(server.get("/livez").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_taken_port_is_told_with_its_setting() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let error = runtime
        .block_on(bind(server.address))
        .expect_err("it is taken")
        .to_string();
    let expected = format!(
        "cannot listen on {}, the address of [http]: Address already in use",
        server.address
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn the_client_reads_what_the_server_says() {
    let server = Server::start();
    let base = format!("http://{}", server.address);
    let second = Duration::from_secs(5);
    let answer = fetch(&base, "/status", second).expect("answered");
    assert_eq!(answer.status, 200);
    assert_eq!(
        serde_json::from_str::<Status>(&answer.body).expect("JSON"),
        example()
    );
    assert_eq!(fetch(&base, "/other", second).expect("answered").status, 404);
}

#[test]
fn the_client_waits_no_longer_than_told() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let base = format!("http://{}", silent.local_addr().expect("it is bound"));
    let start = Instant::now();
    let error = fetch(&base, "/status", Duration::from_millis(200)).expect_err("nobody answers");
    assert!(
        matches!(&error, ClientError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(silent);
    let error = fetch(&base, "/status", Duration::from_secs(1))
        .expect_err("nobody listens")
        .to_string();
    assert!(error.contains(&base) && error.contains("refused"), "{error}");
}
