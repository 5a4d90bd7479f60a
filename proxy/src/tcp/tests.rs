#![allow(clippy::unwrap_used)]

use socket2::SockRef;
use tokio::net::TcpListener;

use super::*;

async fn connected() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    let stream = connected().await;
    let given = Some(Duration::from_millis(12_345));
    tune(&stream, Duration::from_secs(17), given).unwrap();
    let socket = SockRef::from(&stream);
    assert!(stream.nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(17));
    assert_eq!(socket.tcp_user_timeout().unwrap(), given);
}

#[tokio::test]
async fn zero_leaves_the_systems_default() {
    let stream = connected().await;
    tune(&stream, Duration::ZERO, None).unwrap();
    let socket = SockRef::from(&stream);
    assert!(!socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}
