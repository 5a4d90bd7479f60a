"use strict";
// node-postgres: a pool, types, named statements, blocks, cursors, COPY, LISTEN, cancelling.
//
// Connects by the PG* variables, in the schema that SCHEMA names. With FEW_BACKENDS set there are fewer connections to
// the servers than clients, so what needs two of them at a time is left out.

const assert = require("node:assert/strict");
const { once } = require("node:events");
const { Readable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const { Client, Pool, types } = require("pg");
const copy = require("pg-copy-streams");
const Cursor = require("pg-cursor");

// Its `cancel` uses what it calls deprecated itself.
process.noDeprecation = true;

const SCHEMA = process.env.SCHEMA;
const options = { options: `-c search_path=${SCHEMA}`, application_name: "node-postgres" };

// int8 is a string by default, as it does not fit a number. Applications that want it whole ask for a BigInt.
types.setTypeParser(types.builtins.INT8, BigInt);

async function tables(pool) {
  await pool.query(`
    CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL CHECK (balance >= 0));
    CREATE TABLE event (id serial PRIMARY KEY, at timestamptz NOT NULL, what jsonb, raw bytea, tags text[]);
    INSERT INTO account SELECT g, 'owner ' || g, 100 FROM generate_series(1, 20) g`);
}

async function parametersAndTypes(pool) {
  const { rows, fields } = await pool.query({
    text: "SELECT $1::int AS a, $2::text AS b",
    values: [7, "ü\u{1f600}"],
    rowMode: "array",
  });
  assert.deepEqual(rows, [[7, "ü\u{1f600}"]]);
  assert.deepEqual(fields.map(({ name, dataTypeID }) => [name, dataTypeID]), [["a", 23], ["b", 25]]);

  const at = new Date("2024-02-29T12:34:56.789Z");
  const raw = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
  const what = { nested: [1, { text: 'a "quoted" line\n' }], none: null };
  const tags = ["plain", 'a,"b"', "", "NULL", "back\\slash"];
  const inserted = await pool.query(
    "INSERT INTO event (at, what, raw, tags) VALUES ($1, $2, $3, $4) RETURNING *",
    [at, what, raw, tags],
  );
  const { id, ...stored } = inserted.rows[0];
  assert.deepEqual(stored, { at, what, raw, tags });
  const found = await pool.query("/* halyard.route: primary */ SELECT * FROM event WHERE id = $1", [id]);
  assert.deepEqual(found.rows, [{ id, at, what, raw, tags }]);

  const scalars = await pool.query(
    "SELECT $1::bigint AS big, $2::numeric AS exact, $3::bool AS yes, $4::int AS missing, $5::uuid AS uuid, " +
      "$6::int[] AS list, $7::float8 AS float, $8::date::text AS day",
    [2n ** 62n, "1.10", true, null, "6f1c2f3e-7f3a-4d8e-9a51-5a0a4f3f7a11", [1, null, 3], 0.1, "2024-02-29"],
  );
  assert.deepEqual(scalars.rows[0], {
    big: 2n ** 62n,
    exact: "1.10",
    yes: true,
    missing: null,
    uuid: "6f1c2f3e-7f3a-4d8e-9a51-5a0a4f3f7a11",
    list: [1, null, 3],
    float: 0.1,
    day: "2024-02-29",
  });
  // A list as one parameter, and an answer of several statements.
  const some = await pool.query("SELECT g FROM generate_series(1, 9) g WHERE g = ANY($1)", [[2, 3, 5]]);
  assert.deepEqual(some.rows.map(({ g }) => g), [2, 3, 5]);
  const several = await pool.query("SELECT 1 AS a; SELECT 2 AS b");
  assert.deepEqual(several.map((result) => result.rows[0]), [{ a: 1 }, { b: 2 }]);
  // A large value in each direction.
  const large = "x".repeat(3_000_000);
  const { rows: [{ back }] } = await pool.query("SELECT $1::text AS back", [large]);
  assert.equal(back, large);
}

async function namedStatements(pool) {
  // Every client of the pool prepares each name once and then only binds it.
  const work = Array.from({ length: 200 }, async (_, n) => {
    const kind = n % 5;
    const statement = { name: `plus ${kind}`, text: `SELECT $1::int + ${kind} AS sum`, values: [n] };
    const { rows } = await pool.query(statement);
    assert.equal(rows[0].sum, n + kind);
  });
  await Promise.all(work);
  const client = await pool.connect();
  try {
    // Which of the names this client has prepared by now is chance.
    await client.query({ name: "plus 0", text: "SELECT $1::int + 0 AS sum", values: [1] });
    await assert.rejects(client.query({ name: "plus 0", text: "SELECT 'another'", values: [] }), /must be unique/);
    const broken = { name: "broken", text: "SELECT * FROM there_is_no_such_table WHERE a = $1", values: [1] };
    await assert.rejects(client.query(broken), { code: "42P01" });
    const divides = { name: "divides", text: "SELECT 10 / $1::int AS result" };
    await assert.rejects(client.query({ ...divides, values: [0] }), { code: "22012" });
    assert.equal((await client.query({ ...divides, values: [5] })).rows[0].result, 2);
  } finally {
    client.release();
  }
}

async function inBlock(pool, work) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const result = await work(client);
    await client.query("COMMIT");
    return result;
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

async function transfer(pool, from, to, amount) {
  await inBlock(pool, async (client) => {
    // In the order of the keys, so that two transfers never wait for each other.
    await client.query("SELECT id FROM account WHERE id = ANY($1) ORDER BY id FOR UPDATE", [[from, to]]);
    await client.query("UPDATE account SET balance = balance - $2 WHERE id = $1", [from, amount]);
    await client.query("UPDATE account SET balance = balance + $2 WHERE id = $1", [to, amount]);
  });
}

async function transactions(pool) {
  await assert.rejects(transfer(pool, 1, 2, 1000), (error) => {
    assert.equal(error.code, "23514");
    assert.equal(error.constraint, "account_balance_check");
    assert.equal(error.table, "account");
    assert.equal(error.schema, SCHEMA);
    return true;
  });
  await inBlock(pool, async (client) => {
    await client.query("INSERT INTO account VALUES (100, 'new', 5)");
    await client.query("SAVEPOINT again");
    await assert.rejects(client.query("INSERT INTO account VALUES (100, 'new', 5)"), { code: "23505" });
    await assert.rejects(client.query("SELECT 1"), { code: "25P02" });
    await client.query("ROLLBACK TO SAVEPOINT again");
    const { rowCount } = await client.query("DELETE FROM account WHERE id = $1", [100]);
    assert.equal(rowCount, 1);
  });
  await Promise.all(Array.from({ length: 60 }, (_, n) => transfer(pool, 1 + (n % 20), 1 + ((n * 7 + 3) % 20), 1)));
  const total = await inBlock(pool, async (client) => {
    await client.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    return (await client.query("SELECT sum(balance)::int AS total, count(*)::int AS n FROM account")).rows[0];
  });
  assert.deepEqual(total, { total: 2000, n: 20 });
}

async function readsItsOwnWrites(pool) {
  const client = await pool.connect();
  try {
    for (let n = 0; n < 25; n += 1) {
      await client.query("UPDATE account SET owner = $1 WHERE id = 1", [`owner ${n}`]);
      const { rows } = await client.query("SELECT owner FROM account WHERE id = 1");
      assert.equal(rows[0].owner, `owner ${n}`);
    }
  } finally {
    client.release();
  }
}

async function cursors(pool) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const cursor = client.query(new Cursor("SELECT g FROM generate_series(1, $1::int) g", [1000]));
    const seen = [];
    for (;;) {
      const rows = await cursor.read(128);
      if (rows.length === 0) break;
      seen.push(...rows.map(({ g }) => g));
    }
    await cursor.close();
    assert.deepEqual(seen, Array.from({ length: 1000 }, (_, n) => n + 1));
    await client.query("COMMIT");
    // Closed early, and outside of a block.
    const early = client.query(new Cursor("SELECT g FROM generate_series(1, 100000) g"));
    assert.equal((await early.read(10)).length, 10);
    await early.close();
    const failing = client.query(new Cursor("SELECT 1 / (50 - g) FROM generate_series(1, 100) g"));
    await assert.rejects(failing.read(100), { code: "22012" });
    assert.deepEqual((await client.query("SELECT 1 AS one")).rows, [{ one: 1 }]);
  } finally {
    client.release();
  }
}

async function copies(pool) {
  await pool.query("CREATE TABLE copied (a int, b text)");
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const lines = Array.from({ length: 20_000 }, (_, n) => `${n}\tline ${n}\n`);
    const into = client.query(copy.from("COPY copied FROM STDIN"));
    await pipeline(Readable.from(lines), into);
    assert.equal(into.rowCount, 20_000);
    const out = client.query(copy.to("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT"));
    const chunks = [];
    for await (const chunk of out) chunks.push(chunk);
    assert.equal(Buffer.concat(chunks).toString(), lines.join(""));
    await client.query("COMMIT");
    const broken = client.query(copy.from("COPY copied FROM STDIN"));
    await assert.rejects(pipeline(Readable.from(["1\tone\n", "not a number\ttwo\n"]), broken), { code: "22P02" });
    assert.equal((await client.query("SELECT count(*)::int AS n FROM copied")).rows[0].n, 20_000);
  } finally {
    client.release();
  }
}

async function timeouts(pool) {
  const client = new Client({ ...options, statement_timeout: 200, connectionTimeoutMillis: 20_000 });
  await client.connect();
  await assert.rejects(client.query("SELECT pg_sleep(60)"), { code: "57014", message: /statement timeout/ });
  assert.deepEqual((await client.query("SHOW statement_timeout")).rows, [{ statement_timeout: "200ms" }]);
  await client.end();
  // Nobody else has it.
  assert.deepEqual((await pool.query("SHOW statement_timeout")).rows, [{ statement_timeout: "0" }]);
}

async function cancelled(pool) {
  await inBlock(pool, async (client) => {
    const { rows: [{ pid }] } = await client.query("SELECT pg_backend_pid() AS pid");
    const slept = assert.rejects(client.query("SELECT pg_sleep(60)"), { code: "57014", message: /user request/ });
    const asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep%'";
    while ((await pool.query(`/* halyard.route: primary */ ${asleep}`, [pid])).rowCount === 0);
    await pool.query("SELECT pg_cancel_backend($1)", [pid]);
    await slept;
    await client.query("ROLLBACK");
    await client.query("BEGIN");
  });
  // The protocol's own cancel, which the driver offers for a query of another client.
  const [client, other] = [new Client(options), new Client(options)];
  await client.connect();
  const query = new (require("pg").Query)("SELECT pg_sleep(60)");
  query.on("error", () => {});
  client.query(query);
  const ended = once(query, "end").catch((error) => error);
  await new Promise((resolve) => setTimeout(resolve, 300));
  other.cancel(client, query);
  assert.equal((await ended).code, "57014");
  assert.deepEqual((await client.query("SELECT 1 AS one")).rows, [{ one: 1 }]);
  await client.end();
}

async function notifications(pool) {
  const client = new Client(options);
  await client.connect();
  const heard = [];
  let all;
  const everything = new Promise((resolve) => (all = resolve));
  client.on("notification", ({ channel, payload, processId }) => {
    assert.ok(processId > 0);
    heard.push(`${channel} ${payload}`);
    if (heard.length === 4) all();
  });
  await client.query(`LISTEN ${SCHEMA}_news`);
  await client.query(`SELECT pg_notify('${SCHEMA}_news', 'its own')`);
  for (const number of [1, 2]) await pool.query(`NOTIFY ${SCHEMA}_news, '${number}'`);
  await inBlock(pool, async (other) => {
    await other.query("SELECT pg_notify($1, 'committed')", [`${SCHEMA}_news`]);
  });
  await everything;
  assert.deepEqual(heard, ["its own", "1", "2", "committed"].map((payload) => `${SCHEMA}_news ${payload}`));
  await client.query(`UNLISTEN ${SCHEMA}_news`);
  await pool.query(`NOTIFY ${SCHEMA}_news, 'too late'`);
  await client.query("SELECT 1");
  assert.equal(heard.length, 4);
  await client.end();
}

async function queues(pool) {
  // Work is taken from a table by many at once, as job queues do.
  await pool.query("CREATE TABLE job (id int PRIMARY KEY, done_by int); INSERT INTO job SELECT generate_series(1, 40)");
  const take = "SELECT id FROM job WHERE done_by IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
  const worker = async (number) => {
    for (let done = 0; ; done += 1) {
      const id = await inBlock(pool, async (client) => {
        const { rows } = await client.query(take);
        if (rows.length === 0) return undefined;
        await client.query("UPDATE job SET done_by = $2 WHERE id = $1", [rows[0].id, number]);
        return rows[0].id;
      });
      if (id === undefined) return done;
    }
  };
  const done = await Promise.all([1, 2, 3, 4].map(worker));
  assert.equal(done.reduce((sum, n) => sum + n), 40);
}

async function manyClients() {
  const clients = Array.from({ length: 40 }, () => new Client(options));
  await Promise.all(clients.map((client) => client.connect()));
  const work = async (client, number) => {
    for (let n = number; n < number + 5; n += 1) {
      const { rows } = await client.query("SELECT $1::int AS n, current_schema() AS schema", [n]);
      assert.deepEqual(rows, [{ n, schema: SCHEMA }]);
    }
  };
  await Promise.all(clients.map(work));
  await Promise.all(clients.map((client) => client.end()));
}

async function main() {
  const pool = new Pool({ ...options, max: 8 });
  await tables(pool);
  const always = [
    parametersAndTypes,
    namedStatements,
    transactions,
    readsItsOwnWrites,
    cursors,
    copies,
    timeouts,
    queues,
    manyClients,
  ];
  const twoAtATime = process.env.FEW_BACKENDS ? [] : [cancelled, notifications];
  for (const check of [...always, ...twoAtATime]) await check(pool);
  await pool.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
