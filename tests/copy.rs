//! What is large passes through without being held: 1 GB in, 1 GB out, and one row of nearly 1 GB.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use crate::support::message::*;
use crate::support::{Client, Cluster, LONG_PATIENCE, Proxy, peak_memory_kib};

const GIB: usize = 1 << 30;
/// The proxy's memory at its highest.
const PEAK_MAX_KIB: u64 = 64 * 1024;

#[track_caller]
fn assert_stayed_small(proxy: &Proxy) {
    let peak = peak_memory_kib(proxy.pid());
    assert!(peak < PEAK_MAX_KIB, "the proxy had {peak} KiB resident");
}

/// Reads messages without keeping them: bytes of all bodies of a kind, until ReadyForQuery.
fn drain(client: Client, kind: u8) -> (usize, usize) {
    let (received, stream) = client.into_stream();
    // The server makes the whole row before it sends the first byte.
    stream.set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    let mut source = std::io::Cursor::new(received).chain(std::io::BufReader::with_capacity(1 << 20, stream));
    let (mut messages, mut bytes) = (0, 0);
    loop {
        let mut head = [0; 5];
        source.read_exact(&mut head).unwrap();
        let length = u64::from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])) - 4;
        let read = std::io::copy(&mut source.by_ref().take(length), &mut std::io::sink()).unwrap();
        assert_eq!(read, length);
        assert_ne!(head[0], b'E');
        if head[0] == kind {
            messages += 1;
            bytes += usize::try_from(length).unwrap();
        }
        if head[0] == b'Z' {
            return (messages, bytes);
        }
    }
}

#[test]
fn a_row_of_nearly_a_gigabyte_passes_in_little_memory() {
    /// PostgreSQL allocates at most 1 GiB less a byte for a message.
    const ROW: usize = 1_000_000_000;
    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    client.send(&query(&format!("SELECT repeat('x', {ROW})")));
    let (rows, bytes) = drain(client, b'D');
    // The count of columns and the column's length stand before it.
    assert_eq!((rows, bytes), (1, ROW + 6));
    assert_stayed_small(&proxy);
}

#[test]
fn copy_of_a_gigabyte_out_passes_in_little_memory() {
    const LINES: usize = GIB / 8192;
    let proxy = Cluster::shared().proxy().start();
    let mut client = proxy.connect();
    client.send(&query(&format!(
        "COPY (SELECT repeat('x', 8191) FROM generate_series(1, {LINES})) TO STDOUT"
    )));
    assert_eq!(drain(client, b'd'), (LINES, GIB));
    assert_stayed_small(&proxy);
}

#[test]
fn copy_of_a_gigabyte_in_passes_in_little_memory() {
    const LINE: usize = 8192;
    const LINES: usize = GIB / LINE;
    let cluster = Cluster::shared();
    // Read by the server and not kept: what is tested is the way there.
    cluster.prepare("DROP TABLE IF EXISTS big_copy; CREATE TABLE big_copy (a text)");
    let proxy = cluster.proxy().start();
    let mut client = proxy.connect();
    client.send(&query("COPY big_copy FROM STDIN WHERE a NOT LIKE 'x%'"));
    client.until_kind(b'G');
    let mut line = vec![b'x'; LINE];
    line[LINE - 1] = b'\n';
    // Eight lines at a time, in frames that end anywhere.
    let chunk = line.repeat(8);
    let frame = copy_data(&chunk);
    let mut sink: TcpStream = client.stream().try_clone().unwrap();
    for _ in 0..LINES / 8 {
        sink.write_all(&frame).unwrap();
    }
    client.send(&copy_done());
    let answer = client.answer();
    assert_eq!(answer.tags, ["COPY 0"], "{answer:?}");
    assert_stayed_small(&proxy);
}

/// One reader that takes its time must not cost the proxy memory.
#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let proxy = Cluster::shared().proxy().start();
    let mut slow = proxy.connect();
    slow.send(&query("SELECT repeat('x', 10000) FROM generate_series(1, 30000)"));
    // Everybody else goes on as ever, and by then the answer has filled every buffer on its way.
    thread::scope(|scope| {
        for _ in 0..4 {
            let mut other = proxy.connect();
            scope.spawn(move || (0..200).for_each(|_| assert_eq!(other.value("SELECT 1"), "1")));
        }
    });
    assert_stayed_small(&proxy);
    assert_eq!(drain(slow, b'D').0, 30_000);
    assert_stayed_small(&proxy);
}

/// What a RESET gives back would stand behind the Sync, which a server that copies does not read.
#[test]
fn a_copy_behind_a_reset_in_one_batch_is_not_disturbed() {
    let cluster = Cluster::shared();
    cluster.prepare("DROP TABLE IF EXISTS behind_a_reset; CREATE TABLE behind_a_reset (n int)");
    let proxy = cluster.proxy().start();
    let mut client = proxy.address.connect_with(&[("TimeZone", "Asia/Tokyo")]);
    client.send(&[unnamed("RESET TimeZone", &[]), flush()].concat());
    client.until_kind(b'C');
    let copy = unnamed("COPY behind_a_reset FROM STDIN", &[]);
    client.send(&[copy, sync()].concat());
    client.until_kind(b'G');
    client.send(&[copy_data(b"1\n2\n"), copy_done(), sync()].concat());
    assert_eq!(client.answer().tags, ["COPY 2"]);
    assert_eq!(client.value("SELECT count(*) FROM behind_a_reset"), "2");
}
