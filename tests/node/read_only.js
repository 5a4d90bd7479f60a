"use strict";
// node-postgres: blocks that read only, said by hand as it has no words for them. Standbys serve them.
//
// Connects by the PG* variables, in the schema that SCHEMA names, whose table `kept` nobody writes. PRIMARY_PORT is where
// the primary listens.

const assert = require("node:assert/strict");
const { Client } = require("pg");

const PRIMARY = Number(process.env.PRIMARY_PORT);
const options = `-c search_path=${process.env.SCHEMA}`;

async function port(client) {
  const { rows } = await client.query("SELECT inet_server_port() AS port");
  return rows[0].port;
}

async function connected(options) {
  const client = new Client({ options });
  await client.connect();
  return client;
}

async function main() {
  const client = await connected(options);
  for (const begin of [
    ["BEGIN READ ONLY"],
    ["START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"],
    ["BEGIN", "SET TRANSACTION READ ONLY"],
    ["BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"],
    ["BEGIN; SET TRANSACTION READ ONLY"],
  ]) {
    for (const statement of begin) await client.query(statement);
    assert.notEqual(await port(client), PRIMARY, begin.join("; "));
    await assert.rejects(client.query("INSERT INTO kept VALUES ($1)", [1]), { code: "25006" });
    await client.query("ROLLBACK");
  }
  // All at once, as a client does that awaits the last alone: the block moves before its first query runs.
  client.query("BEGIN");
  client.query("SET TRANSACTION READ ONLY");
  assert.notEqual(await port(client), PRIMARY);
  await client.query("COMMIT");

  await client.query("BEGIN");
  assert.equal(await port(client), PRIMARY);
  await client.query("ROLLBACK");
  await client.query("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY");
  await client.query("BEGIN");
  assert.notEqual(await port(client), PRIMARY);
  await client.query("COMMIT");
  await client.end();

  const reader = await connected(`${options} -c default_transaction_read_only=on`);
  await reader.query("BEGIN");
  assert.notEqual(await port(reader), PRIMARY);
  await reader.query("COMMIT");
  await reader.query("BEGIN");
  await reader.query("SET TRANSACTION READ WRITE");
  assert.equal(await port(reader), PRIMARY);
  await reader.query("ROLLBACK");
  await reader.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
