//! What pgbench's select-only transaction looks like on the wire, and the pure part of relaying it.

use halyard::relay::ledger::{Event, Fate, Ledger, Owed};
use halyard::wire::{BufferPool, FrameBuf, Header, backend, frontend, tagged};

pub(crate) const SELECT: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

/// One transaction: what the client sends at once, and what the node answers at once.
pub(crate) struct Flight {
    #[allow(
        dead_code,
        reason = "one of the two benches that share this names its measurements by it"
    )]
    pub(crate) name: &'static str,
    pub(crate) request: Vec<u8>,
    pub(crate) answer: Vec<u8>,
}

/// In each of the three protocols that pgbench speaks, as libpq writes them.
pub(crate) fn flights() -> [Flight; 3] {
    let mut simple = Vec::new();
    tagged(&mut simple, frontend::QUERY, |out| {
        out.extend_from_slice(b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;\0");
    });
    let mut extended = Vec::new();
    tagged(&mut extended, frontend::PARSE, |out| {
        out.push(0);
        out.extend_from_slice(SELECT);
        out.extend_from_slice(&[0, 0, 0]);
    });
    bind_to_sync(&mut extended, b"");
    let mut prepared = Vec::new();
    bind_to_sync(&mut prepared, b"P_0");

    let mut rows = Vec::new();
    tagged(&mut rows, backend::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(b"\0\x01abalance\0\0\0\x40\x01\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
    });
    tagged(&mut rows, backend::DATA_ROW, |out| {
        out.extend_from_slice(b"\0\x01\0\0\0\x01\x30");
    });
    tagged(&mut rows, backend::COMMAND_COMPLETE, |out| {
        out.extend_from_slice(b"SELECT 1\0");
    });
    tagged(&mut rows, backend::READY_FOR_QUERY, |out| out.push(b'I'));
    let complete = |kinds: &[u8]| {
        let mut answer = Vec::new();
        for &kind in kinds {
            tagged(&mut answer, kind, |_| {});
        }
        answer.extend_from_slice(&rows);
        answer
    };
    [
        Flight {
            name: "simple",
            request: simple,
            answer: complete(&[]),
        },
        Flight {
            name: "extended",
            request: extended,
            answer: complete(&[backend::PARSE_COMPLETE, backend::BIND_COMPLETE]),
        },
        Flight {
            name: "prepared",
            request: prepared,
            answer: complete(&[backend::BIND_COMPLETE]),
        },
    ]
}

fn bind_to_sync(out: &mut Vec<u8>, statement: &[u8]) {
    tagged(out, frontend::BIND, |out| {
        out.push(0);
        out.extend_from_slice(statement);
        out.extend_from_slice(b"\0\0\0\0\x01\0\0\0\x0512345\0\0");
    });
    tagged(out, frontend::DESCRIBE, |out| out.extend_from_slice(b"P\0"));
    tagged(out, frontend::EXECUTE, |out| out.extend_from_slice(&[0; 5]));
    tagged(out, frontend::SYNC, |_| {});
}

/// What one thread and one backend keep between transactions.
#[derive(Default)]
pub(crate) struct Place {
    input: FrameBuf,
    pool: BufferPool,
    ledger: Ledger,
}

impl Place {
    /// Takes a transaction through buffer and ledger as the relay does: its request in, frame by frame; its answer out,
    /// frame by frame; and the proof that the backend may go back. The bytes of the answer that the client gets.
    pub(crate) fn relay(&mut self, flight: &Flight) -> usize {
        let size = flight.request.len();
        self.input.spare(&mut self.pool)[..size].copy_from_slice(&flight.request);
        self.input.commit(size);
        while let Some(header) =
            Header::parse_frontend(self.input.unparsed()).expect("the frames are well formed")
        {
            self.ledger.owe(owed(header.kind), Fate::Forward);
            self.input.parse(header.total());
        }
        self.input.release_held();
        self.input.retire(&mut self.pool);

        let mut rest = &flight.answer[..];
        let mut forwarded = 0;
        while let Some(header) = Header::parse(rest).expect("the frames are well formed") {
            let status = rest.get(5).copied();
            let verdict = self
                .ledger
                .on_frame(header.kind, status)
                .expect("the answer fits the request");
            forwarded += if verdict.forward { header.total() } else { 0 };
            rest = &rest[header.total()..];
            if verdict.event == Event::Ready {
                break;
            }
        }
        assert!(self.ledger.settled().is_some(), "everything was answered");
        forwarded
    }
}

fn owed(kind: u8) -> Owed {
    match kind {
        frontend::QUERY => Owed::Query,
        frontend::PARSE => Owed::Parse,
        frontend::BIND => Owed::Bind,
        frontend::DESCRIBE => Owed::Describe,
        frontend::EXECUTE => Owed::Execute,
        _ => Owed::Sync,
    }
}
