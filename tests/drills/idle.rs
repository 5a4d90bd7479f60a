//! Many clients that do nothing but be there, each with a prepared statement and a setting of its own.

use crate::support::message::{bind, execute, parse, query, sync};
use crate::support::{Address, Client, LONG_PATIENCE};

/// Clients that are asked at a time.
const BATCH: usize = 50;

/// The clients, with what each has set.
pub(crate) struct Idle {
    clients: Vec<(Client, u32)>,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// Connections that ended.
    pub(crate) dropped: usize,
    /// Clients that got an error, or whose statement or setting is not theirs any more.
    pub(crate) lost: usize,
}

impl Idle {
    /// Connects them.
    pub(crate) fn connect(address: &Address, count: usize) -> Self {
        let number = u32::try_from(count).unwrap();
        let clients = (0..number)
            .map(|own| {
                let mut client = address.connect();
                client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
                let statement = format!("SELECT $1::int + {}", own % 20);
                client.send(&[parse("mine", &statement), sync()].concat());
                assert!(client.answer().error.is_none(), "{statement} is not prepared");
                client.run(&format!("SET statement_timeout = {}", timeout_ms(own)));
                (client, own)
            })
            .collect();
        Self { clients }
    }

    /// Has every client use what it has, on the primary. Those that are gone are left out from now on.
    pub(crate) fn use_all(&mut self) -> Kept {
        let mut kept = Kept::default();
        let mut living = Vec::with_capacity(self.clients.len());
        let mut clients = std::mem::take(&mut self.clients).into_iter().peekable();
        while clients.peek().is_some() {
            let mut batch: Vec<_> = clients.by_ref().take(BATCH).collect();
            // A client that is gone is found out when it is read.
            for (client, _) in &mut batch {
                let _ = client.try_send(&request());
            }
            for (mut client, own) in batch {
                match answers_right(&mut client, own) {
                    Ok(right) => {
                        kept.lost += usize::from(!right);
                        living.push((client, own));
                    }
                    Err(_) => kept.dropped += 1,
                }
            }
        }
        self.clients = living;
        kept
    }
}

fn timeout_ms(own: u32) -> u32 {
    600_000 + own
}

fn request() -> Vec<u8> {
    [
        query("BEGIN"),
        bind("", "mine", &[Some("22")]),
        execute("", 0),
        sync(),
        query("SHOW statement_timeout"),
        query("COMMIT"),
    ]
    .concat()
}

fn answers_right(client: &mut Client, own: u32) -> std::io::Result<bool> {
    let begun = client.try_answer()?;
    let sum = client.try_answer()?;
    let setting = client.try_answer()?;
    let ended = client.try_answer()?;
    let value = |rows: &[Vec<Option<String>>]| rows.first().and_then(|row| row.first().cloned().flatten());
    let expected = timeout_ms(own);
    // PostgreSQL shows whole seconds and minutes as such.
    let shown = match expected {
        whole if whole % 60_000 == 0 => format!("{}min", whole / 60_000),
        whole if whole % 1_000 == 0 => format!("{}s", whole / 1_000),
        odd => format!("{odd}ms"),
    };
    Ok([&begun, &sum, &setting, &ended]
        .iter()
        .all(|answer| answer.error.is_none())
        && value(&sum.rows) == Some((22 + own % 20).to_string())
        && value(&setting.rows) == Some(shown))
}
