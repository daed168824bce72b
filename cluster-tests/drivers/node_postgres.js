// node-postgres through the proxy: simple and prepared queries, its pool, parallel clients.
"use strict";
const assert = require("node:assert");
const { Client, Pool } = require("pg");

const connectionString = process.env.PGHERD_URL;
let checks = 0;
function check(what, found, expected) {
  checks += 1;
  assert.deepStrictEqual(found, expected, what);
}

async function alone() {
  const client = new Client({ connectionString });
  await client.connect();
  await client.query("DROP TABLE IF EXISTS node_driver");
  await client.query("CREATE TABLE node_driver (id int PRIMARY KEY, val jsonb)");
  for (let n = 0; n < 50; n++) {
    await client.query("INSERT INTO node_driver VALUES ($1, $2)", [n, { n }]);
    const found = await client.query("SELECT val FROM node_driver WHERE id = $1", [n]);
    check("a read of an own write", found.rows, [{ val: { n } }]);
  }
  for (let n = 0; n < 50; n++) {
    const found = await client.query({
      name: "by-id",
      text: "SELECT id, val FROM node_driver WHERE id = $1",
      values: [n],
    });
    check("a named statement", found.rows, [{ id: n, val: { n } }]);
  }
  const several = await client.query("SELECT 1 AS a; SELECT 2 AS b; INSERT INTO node_driver VALUES (100, '{}')");
  check("several statements in one", several.map((one) => one.command), ["SELECT", "SELECT", "INSERT"]);
  const queued = await Promise.all([1, 2, 3, 4].map((n) => client.query("SELECT $1::int AS n", [n])));
  check("queries that were queued", queued.map((one) => one.rows[0].n), [1, 2, 3, 4]);
  await assert.rejects(client.query("SELECT no_such_column"), { code: "42703" });
  await client.query("BEGIN");
  await client.query("DELETE FROM node_driver");
  await assert.rejects(client.query("SELECT 1/0"), { code: "22012" });
  await assert.rejects(client.query("SELECT 1"), { code: "25P02" });
  await client.query("ROLLBACK");
  check("what was rolled back", (await client.query("SELECT count(*)::int AS n FROM node_driver")).rows, [{ n: 51 }]);
  const heard = new Promise((resolve) => client.on("notification", (message) => resolve(message.payload)));
  await client.query("LISTEN node_news");
  await client.query("NOTIFY node_news, 'arrived'");
  check("a notification", await heard, "arrived");
  await client.end();
}

async function together() {
  const pool = new Pool({ connectionString, max: 6 });
  const found = await Promise.all(
    Array.from({ length: 60 }, async (_, n) => {
      const client = await pool.connect();
      try {
        await client.query("BEGIN");
        await client.query("UPDATE node_driver SET val = $2 WHERE id = $1", [n % 50, { by: n }]);
        await client.query("COMMIT");
        return (await client.query("SELECT val ? 'by' AS ok FROM node_driver WHERE id = $1", [n % 50])).rows[0].ok;
      } finally {
        client.release();
      }
    }),
  );
  check("reads behind commits", found, Array(60).fill(true));
  await pool.end();
}

alone()
  .then(together)
  .then(() => console.log(`${checks} checks with node-postgres ${require("pg/package.json").version}`))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
