"""asyncpg through the proxy: it prepares everything, in the binary format, and caches what it prepared."""

import asyncio
import datetime
import os

import asyncpg

DSN = os.environ["PGHERD_URL"]
checks = 0


def check(what, found, expected):
    global checks
    checks += 1
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


async def fails(what, error, awaitable):
    global checks
    checks += 1
    try:
        await awaitable
    except error:
        return
    raise AssertionError(f"{what}: no {error.__name__}")


async def alone(conn):
    await conn.execute("DROP TABLE IF EXISTS async_driver")
    await conn.execute("CREATE TABLE async_driver (id int PRIMARY KEY, val text, at timestamptz)")
    at = datetime.datetime(2024, 2, 29, 12, 0, tzinfo=datetime.timezone.utc)
    await conn.executemany("INSERT INTO async_driver VALUES ($1, $2, $3)", [(n, str(n), at) for n in range(100)])
    for n in range(100):
        row = await conn.fetchrow("SELECT val, at FROM async_driver WHERE id = $1", n)
        check("a row", tuple(row), (str(n), at))
    statement = await conn.prepare("SELECT count(*) FROM async_driver WHERE id < $1")
    check("a prepared statement", [await statement.fetchval(n) for n in (0, 1, 50)], [0, 1, 50])
    check("its types", [kind.name for kind in statement.get_parameters()], ["int4"])
    async with conn.transaction():
        walk = [row["id"] async for row in conn.cursor("SELECT id FROM async_driver ORDER BY id", prefetch=7)]
    check("a cursor with a row limit", walk, list(range(100)))
    await fails("an error", asyncpg.UniqueViolationError, conn.execute("INSERT INTO async_driver VALUES (1)"))
    try:
        async with conn.transaction():
            await conn.execute("DELETE FROM async_driver")
            async with conn.transaction():
                await conn.execute("INSERT INTO async_driver VALUES (1000)")
            raise KeyError
    except KeyError:
        pass
    check("what was rolled back", await conn.fetchval("SELECT count(*) FROM async_driver"), 100)
    copied = await conn.copy_records_to_table("async_driver", records=[(n, None, None) for n in range(100, 5100)])
    check("a binary COPY", copied, "COPY 5000")
    check("its rows", await conn.fetchval("SELECT count(*) FROM async_driver"), 5100)
    await fails("a timeout", asyncio.TimeoutError, conn.fetch("SELECT pg_sleep(30)", timeout=0.3))
    check("after the cancel", await conn.fetchval("SELECT 1"), 1)
    heard = asyncio.get_running_loop().create_future()
    await conn.add_listener("async_news", lambda _conn, _pid, _channel, payload: heard.set_result(payload))
    await conn.execute("SELECT pg_notify('async_news', 'arrived')")
    check("a notification", await asyncio.wait_for(heard, 10), "arrived")


async def together():
    """Its pool resets a connection, by a statement of its own, each time it is given back."""
    async with asyncpg.create_pool(DSN, min_size=2, max_size=8) as pool:

        async def one(n):
            async with pool.acquire() as conn:
                async with conn.transaction():
                    await conn.execute("SET LOCAL application_name = 'together'")
                    await conn.execute("UPDATE async_driver SET val = $2 WHERE id = $1", n, f"by {n}")
                return await conn.fetchval("SELECT val FROM async_driver WHERE id = $1", n)

        found = await asyncio.gather(*(one(n) for n in range(100)))
        check("reads of own writes", found, [f"by {n}" for n in range(100)])


async def console():
    """The proxy's own database, through a pool, which resets what is given back to it."""
    async with asyncpg.create_pool(DSN, database="pgherd", min_size=1, max_size=2) as pool:
        for _ in range(3):
            rows = await pool.fetch("SHOW CLIENTS")
            check("who asks", "pgherd" in [row["database"] for row in rows], True)
            check("its version", (await pool.fetchval("SHOW VERSION")).split()[0], "pgherd-proxy")


async def main():
    conn = await asyncpg.connect(DSN)
    await alone(conn)
    await conn.close()
    await together()
    await console()
    print(f"{checks} checks with asyncpg {asyncpg.__version__}")


asyncio.run(main())
