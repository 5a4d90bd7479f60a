#![allow(clippy::unwrap_used)]

use socket2::SockRef;
use tokio::net::TcpListener;

use super::*;

async fn connected() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

fn limits(tcp_keepalive: Duration, tcp_user_timeout: Duration) -> Limits {
    Limits {
        client_connections_max: 1,
        unauthenticated_max: 1,
        startup_timeout: Duration::from_secs(1),
        idle_in_transaction_timeout: None,
        tcp_user_timeout,
        tcp_keepalive,
        pipeline_max: 1,
        notifications_queued_max: 1,
        channels_max: 1,
    }
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    let stream = connected().await;
    tune(
        &stream,
        &limits(Duration::from_secs(17), Duration::from_millis(12_345)),
    )
    .unwrap();
    let socket = SockRef::from(&stream);
    assert!(stream.nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(17));
    assert_eq!(
        socket.tcp_user_timeout().unwrap(),
        Some(Duration::from_millis(12_345))
    );
}

#[tokio::test]
async fn zero_leaves_the_systems_default() {
    let stream = connected().await;
    tune(&stream, &limits(Duration::ZERO, Duration::ZERO)).unwrap();
    let socket = SockRef::from(&stream);
    assert!(!socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}
