//! Money that goes from account to account. Whoever looks sees all of it, on the primary and on standbys.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::caller::{Caller, Heard};
use crate::chance::Chance;
use crate::promises::{Doubts, Promises};
use crate::stage::Stage;
use crate::support::message::{bind, execute, parse, query, sync};
use crate::support::{Address, Answer};
use crate::witness::Witness;

const ACCOUNTS: u64 = 20;
const BALANCE: i64 = 1_000;
const TELLERS: usize = 4;
/// Between two transactions of one client.
const PACE: Duration = Duration::from_millis(5);

/// Accounts, and a line for each transfer in the transfer's own transaction.
pub(crate) const TABLES: &str = "CREATE TABLE bank (id int PRIMARY KEY, balance bigint NOT NULL); \
     INSERT INTO bank SELECT id, 1000 FROM generate_series(0, 19) id; \
     CREATE TABLE bank_log (teller int, number bigint, payer int, payee int, amount bigint)";

/// How a reader looks, always at every account twice: by rows and by their sum.
#[derive(Clone, Copy, Debug)]
enum Look {
    /// One statement, on whatever node.
    Alone,
    /// In a block that could write: on the primary.
    Primary,
    /// In a block that cannot: on a standby, where one serves.
    Standby,
}

/// The clients at work.
pub(crate) struct Bank {
    tellers: Vec<JoinHandle<Promises>>,
    auditors: Vec<JoinHandle<u64>>,
}

impl Bank {
    pub(crate) fn start(address: &Address, seed: u64, witness: &'static Witness) -> Self {
        let tellers = (0..TELLERS)
            .map(|number| {
                let caller = Caller::new("bank", number, address, prepared(), witness);
                let chance = Chance::new(seed ^ (number as u64 + 1));
                thread::spawn(move || transfer_on_and_on(caller, number, chance))
            })
            .collect();
        let looks = [Look::Alone, Look::Primary, Look::Standby, Look::Standby];
        let auditors = looks
            .into_iter()
            .enumerate()
            .map(|(number, look)| {
                let caller = Caller::new("bank's audit", number, address, Vec::new(), witness);
                thread::spawn(move || audit_on_and_on(caller, look))
            })
            .collect();
        Self { tellers, auditors }
    }

    /// Waits for the clients, and compares with what the primary has. Returns a line for the summary.
    pub(crate) fn audit(self, stage: &Stage) -> String {
        let witness = stage.witness;
        let transfers: Vec<_> = witness.joined("the bank", self.tellers);
        let looks: u64 = witness.joined("the bank's audit", self.auditors).iter().sum();
        let acknowledged: usize = transfers.iter().map(|told| told.acknowledged.len()).sum();
        let Some(mut direct) = stage.primary_to_compare() else {
            return format!("{acknowledged} transfers acknowledged; {looks} looks at the sum; not compared");
        };
        let wrong = direct.value(
            "SELECT count(*) FROM bank WHERE balance <> 1000 \
             + (SELECT coalesce(sum(amount), 0) FROM bank_log WHERE payee = id) \
             - (SELECT coalesce(sum(amount), 0) FROM bank_log WHERE payer = id)",
        );
        if wrong != "0" {
            witness.violation(&format!("{wrong} accounts do not have what the transfers say"));
        }
        let mut doubts = Doubts::default();
        for (teller, told) in transfers.iter().enumerate() {
            let there = format!("SELECT number FROM bank_log WHERE teller = {teller}");
            doubts += told.compare(&format!("teller {teller}"), &mut direct, &there, witness);
        }
        witness.explains("bank", doubts.count());
        format!("{acknowledged} transfers acknowledged, {doubts}; {looks} looks at the sum")
    }
}

fn prepared() -> Vec<u8> {
    [
        parse("take", "UPDATE bank SET balance = balance - $2 WHERE id = $1"),
        parse("give", "UPDATE bank SET balance = balance + $2 WHERE id = $1"),
        sync(),
    ]
    .concat()
}

fn transfer_on_and_on(mut caller: Caller, teller: usize, mut chance: Chance) -> Promises {
    let mut transfers = Promises::default();
    for number in 0.. {
        if caller.is_over() {
            break;
        }
        match transfer(&mut caller, teller, number, &mut chance) {
            Ok(()) => {
                transfers.acknowledged.push(number);
                caller.made_progress();
            }
            Err(Doubt::Failed) => transfers.failed.push(number),
            Err(Doubt::Unknown) => transfers.unknown.push(number),
        }
        thread::sleep(PACE);
    }
    transfers
}

/// What is known of a transfer that was not acknowledged.
enum Doubt {
    Failed,
    Unknown,
}

/// One transaction: in both protocols, with prepared statements, or in one message.
fn transfer(caller: &mut Caller, teller: usize, number: u64, chance: &mut Chance) -> Result<(), Doubt> {
    let payer = chance.below(ACCOUNTS);
    let payee = (payer + 1 + chance.below(ACCOUNTS - 1)) % ACCOUNTS;
    let amount = chance.between(1, 9);
    // In the order of accounts, or two transfers might wait for each other.
    let mut updates = [(payer, "take", '-'), (payee, "give", '+')];
    updates.sort_unstable();
    let simple = |(id, _, sign): &(u64, &str, char)| {
        format!("UPDATE bank SET balance = balance {sign} {amount} WHERE id = {id}")
    };
    let extended = |(id, name, _): &(u64, &str, char)| {
        let (id, amount) = (id.to_string(), amount.to_string());
        [
            bind("", name, &[Some(&id), Some(&amount)]),
            execute("", 0),
            sync(),
        ]
        .concat()
    };
    let log = format!("INSERT INTO bank_log VALUES ({teller}, {number}, {payer}, {payee}, {amount})");
    let steps: Vec<Vec<u8>> = match number % 3 {
        0 => {
            let all = updates.iter().map(simple).chain([log]);
            let between = all.map(|sql| query(&sql));
            [query("BEGIN")]
                .into_iter()
                .chain(between)
                .chain([query("COMMIT")])
                .collect()
        }
        1 => {
            let between = updates.iter().map(extended).chain([query(&log)]);
            [query("BEGIN")]
                .into_iter()
                .chain(between)
                .chain([query("COMMIT")])
                .collect()
        }
        _ => {
            let all: Vec<_> = updates.iter().map(simple).chain([log]).collect();
            vec![query(&format!("BEGIN; {}; COMMIT", all.join("; ")))]
        }
    };
    let last = steps.len() - 1;
    for (at, step) in steps.iter().enumerate() {
        match caller.ask(step) {
            Heard::Answer(answer) if at == last && answer.tags.last().is_none_or(|tag| tag != "COMMIT") => {
                let words = format!("a transfer's COMMIT was answered {:?}", answer.tags);
                caller.witness().violation(&words);
                return Err(Doubt::Failed);
            }
            Heard::Answer(_) => {}
            Heard::Error(sqlstate) => {
                caller.roll_back();
                return Err(if sqlstate == "08007" {
                    Doubt::Unknown
                } else {
                    Doubt::Failed
                });
            }
            Heard::Gone => return Err(if at == last { Doubt::Unknown } else { Doubt::Failed }),
        }
    }
    Ok(())
}

fn audit_on_and_on(mut caller: Caller, look: Look) -> u64 {
    let mut looks = 0;
    while !caller.is_over() {
        let begin = match look {
            Look::Alone => None,
            Look::Primary => Some("BEGIN ISOLATION LEVEL REPEATABLE READ"),
            Look::Standby => Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        };
        if look_once(&mut caller, look, begin).is_some() {
            looks += 1;
            caller.made_progress();
        }
        thread::sleep(PACE);
    }
    looks
}

/// None where it did not get through.
fn look_once(caller: &mut Caller, look: Look, begin: Option<&str>) -> Option<()> {
    let ask = |caller: &mut Caller, sql: &str| match caller.ask(&query(sql)) {
        Heard::Answer(answer) => Some(answer),
        Heard::Error(_) => {
            if begin.is_some() {
                caller.roll_back();
            }
            None
        }
        Heard::Gone => None,
    };
    if let Some(begin) = begin {
        ask(caller, begin)?;
    }
    let rows = ask(caller, "SELECT balance, inet_server_port() FROM bank ORDER BY id")?;
    check(caller, look, "the rows'", total(&rows), &rows);
    if begin.is_some() {
        // The same snapshot, a while later.
        thread::sleep(PACE);
        let sum = ask(caller, "SELECT sum(balance), inet_server_port() FROM bank")?;
        check(caller, look, "the block's second", total(&sum), &sum);
        ask(caller, "COMMIT")?;
    }
    Some(())
}

fn total(answer: &Answer) -> i64 {
    let balances = answer.rows.iter().map(|row| row[0].as_deref().unwrap_or("0"));
    balances.map(|balance| balance.parse::<i64>().unwrap()).sum()
}

fn check(caller: &Caller, look: Look, which: &str, total: i64, answer: &Answer) {
    let right = BALANCE * i64::try_from(ACCOUNTS).unwrap();
    if total != right {
        let words = format!(
            "{which} sum is {total} and not {right} in {look:?}: {:?}",
            answer.rows
        );
        caller.witness().violation(&words);
    }
}
