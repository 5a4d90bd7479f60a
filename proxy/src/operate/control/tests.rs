use tokio::io::AsyncReadExt;

use super::super::tests::{operations, working};
use super::*;

/// A control socket that runs, and what it holds.
async fn running() -> (
    tempfile::TempDir,
    PathBuf,
    Arc<Pauses>,
    Arc<crate::session::Registry>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let (operations, registry) = operations();
    let pauses = Arc::clone(&operations.pauses);
    let socket = ControlSocket::bind(&path).unwrap();
    tokio::spawn(socket.serve(Arc::clone(&pauses), CancellationToken::new()));
    (folder, path, pauses, registry)
}

async fn ask(path: &Path, line: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut answer = vec![0; 200];
    let count = stream.read(&mut answer).await.unwrap();
    answer.truncate(count);
    (stream, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_hold_lasts_as_long_as_its_connection() {
    let (_folder, path, pauses, _registry) = running().await;
    let (stream, answer) = ask(&path, "hold primary 1000\n").await;
    assert_eq!(answer, "held\n");
    assert!(pauses.hold("app", true) && !pauses.hold("app", false));
    drop(stream);
    while pauses.hold("app", true) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_open_transaction_refuses_it_and_nothing_stays_held() {
    let (_folder, path, pauses, registry) = running().await;
    let _busy = working(&registry, "app", true);
    let (_stream, answer) = ask(&path, "hold primary 20\n").await;
    assert_eq!(answer, "refused: 1 transactions are open still after 20 ms\n");
    assert!(!pauses.hold("app", true));
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let (_folder, path, pauses, _registry) = running().await;
    for line in [
        "hold\n",
        "hold primary soon\n",
        "hold node1 5\n",
        "hold primary 5 now\n",
        "\n",
    ] {
        let (_stream, answer) = ask(&path, line).await;
        assert!(answer.starts_with("refused: "), "{line:?}: {answer:?}");
    }
    assert!(!pauses.hold("app", true));
}

#[tokio::test]
async fn nobody_else_can_reach_it_and_it_goes_with_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let socket = ControlSocket::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(ControlSocket::bind(&path).is_err(), "somebody listens there");
    drop(socket);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(
        ControlSocket::bind(&path).is_ok(),
        "what a killed process left is removed"
    );
}
