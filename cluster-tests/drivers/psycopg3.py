"""psycopg 3 through the proxy, and with it libpq: both protocols, prepared statements, pipelines, COPY."""

import os
import threading
import time

import psycopg
from psycopg import errors

DSN = os.environ["PGHERD_DSN"]
checks = 0


def check(what, found, expected):
    global checks
    checks += 1
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


def fails(what, error, act):
    global checks
    checks += 1
    try:
        act()
    except error:
        return
    raise AssertionError(f"{what}: no {error.__name__}")


def prepared(conn):
    conn.prepare_threshold = 0
    for number in range(200):
        row = conn.execute("SELECT %s::int + 1, %s::text", (number, "x" * (number % 50))).fetchone()
        check("a prepared read", row, (number + 1, "x" * (number % 50)))
    conn.execute("DEALLOCATE ALL")
    conn.prepare_threshold = None


def transactions(conn):
    with conn.transaction():
        conn.execute("INSERT INTO driver VALUES (1, 'one')")
        fails(
            "a savepoint rolls back",
            errors.UniqueViolation,
            lambda: in_savepoint(conn, "INSERT INTO driver VALUES (1, 'again')"),
        )
        conn.execute("INSERT INTO driver VALUES (2, 'two')")
    check("rows that were committed", conn.execute("SELECT count(*) FROM driver").fetchone(), (2,))
    fails("an error in a transaction", errors.DivisionByZero, lambda: in_savepoint(conn, "SELECT 1/0"))
    check("after it", conn.execute("SELECT 1").fetchone(), (1,))


def in_savepoint(conn, sql):
    with conn.transaction():
        conn.execute(sql)


def pipelines(conn):
    with conn.pipeline() as pipeline:
        cursors = [conn.execute("INSERT INTO driver VALUES (%s, %s) RETURNING id", (n, str(n))) for n in range(10, 60)]
        pipeline.sync()
        check("a pipeline of writes", [cursor.fetchone()[0] for cursor in cursors], list(range(10, 60)))
        reads = [conn.execute("SELECT val FROM driver WHERE id = %s", (n,)) for n in range(10, 60)]
        pipeline.sync()
        check("reads behind it", [cursor.fetchone()[0] for cursor in reads], [str(n) for n in range(10, 60)])

    def broken():
        with conn.pipeline() as pipeline:
            conn.execute("SELECT 1")
            conn.execute("SELECT no_such_column")
            conn.execute("INSERT INTO driver VALUES (99, 'must not be')")
            pipeline.sync()

    fails("an error in a pipeline", errors.UndefinedColumn, broken)
    check("what came behind it", conn.execute("SELECT count(*) FROM driver WHERE id = 99").fetchone(), (0,))


def copies(conn):
    rows = 20_000
    with conn.cursor() as cursor:
        with cursor.copy("COPY driver (id, val) FROM STDIN") as copy:
            for number in range(1000, 1000 + rows):
                copy.write_row((number, f"row {number}"))
        with cursor.copy("COPY (SELECT id, val FROM driver WHERE id >= 1000 ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            found = list(copy.rows())
    check("COPY in and out", (len(found), found[0], found[-1]), (rows, (1000, "row 1000"), (20_999, "row 20999")))

    def half_way():
        with conn.cursor() as cursor, cursor.copy("COPY driver (id, val) FROM STDIN") as copy:
            copy.write_row((1_000_000, "half"))
            raise KeyError("the application changed its mind")

    fails("a COPY that is given up", errors.QueryCanceled, half_way)
    count = conn.execute("SELECT count(*) FROM driver WHERE id = 1000000").fetchone()
    check("what it left", count, (0,))


def cursors(conn):
    with conn.transaction(), conn.cursor(name="walk") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT id FROM driver WHERE id >= 1000 ORDER BY id")
        check("a server-side cursor", sum(1 for _ in cursor), 20_000)
    with conn.cursor(binary=True) as cursor:
        cursor.execute("SELECT 1::int8, 'x'::bytea, ARRAY[1, 2], NULL::text")
        check("the binary format", cursor.fetchone(), (1, b"x", [1, 2], None))
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO driver VALUES (%s, %s) RETURNING id", [(n, "many") for n in range(60, 70)], returning=True
        )
        found = []
        while True:
            found.append(cursor.fetchone()[0])
            if not cursor.nextset():
                break
        check("executemany", found, list(range(60, 70)))


def session(conn):
    notices = []
    conn.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    conn.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
    check("a notice", notices, ["heard"])
    conn.execute("SET search_path TO pg_catalog, public")
    conn.execute("SET TimeZone TO 'Asia/Tokyo'")
    for _ in range(20):
        row = conn.execute("SELECT current_setting('search_path'), current_setting('TimeZone')").fetchone()
        check("settings", row, ("pg_catalog, public", "Asia/Tokyo"))
    check("a reported setting", conn.info.parameter_status("TimeZone"), "Asia/Tokyo")
    conn.execute("CREATE TEMP TABLE scratch AS SELECT 1 AS a")
    check("a temporary table", conn.execute("SELECT a FROM scratch").fetchone(), (1,))
    conn.execute("LISTEN news")
    with psycopg.connect(DSN, autocommit=True) as other:
        other.execute("NOTIFY news, 'arrived'")
    check("a notification", next(conn.notifies()).payload, "arrived")


def cancels(conn):
    timer = threading.Timer(0.3, conn.cancel)
    timer.start()
    began = time.monotonic()
    fails("a query that is cancelled", errors.QueryCanceled, lambda: conn.execute("SELECT pg_sleep(30)"))
    timer.join()
    check("in time", time.monotonic() - began < 10, True)
    check("after it", conn.execute("SELECT 1").fetchone(), (1,))


def two_phase():
    # psycopg's own interface for it begins a transaction by itself.
    with psycopg.connect(DSN) as writer:
        xid = writer.xid(1, "pgherd-driver", "branch")
        writer.tpc_begin(xid)
        writer.execute("INSERT INTO driver VALUES (70, 'two-phase')")
        writer.tpc_prepare()
        writer.tpc_commit()
    # A session is promised what was committed before it began, and what it committed itself.
    with psycopg.connect(DSN, autocommit=True) as reader:
        found = reader.execute("SELECT val FROM driver WHERE id = 70").fetchone()
    check("a prepared transaction", found, ("two-phase",))


def console():
    """The proxy's own database. The driver begins a transaction by itself."""
    with psycopg.connect(f"{DSN} dbname=pgherd") as conn:
        check("SHOW VERSION", conn.execute("SHOW VERSION").fetchone()[0].split()[0], "pgherd-proxy")
        named = conn.execute("SHOW CLIENTS", prepare=True)
        check("a column", named.description[0].name, "client_id")
        check("who asks", "pgherd" in [row[2] for row in named], True)
        fails("what it is not for", errors.SyntaxError, lambda: conn.execute("SELECT * FROM driver"))
        conn.rollback()
        check("after it", conn.execute("SELECT 1").fetchone(), ("1",))


with psycopg.connect(DSN, autocommit=True) as connection:
    connection.execute("DROP TABLE IF EXISTS driver")
    connection.execute("CREATE TABLE driver (id int PRIMARY KEY, val text)")
    for part in (prepared, transactions, pipelines, copies, cursors, cancels, session):
        part(connection)
two_phase()
console()
print(f"{checks} checks with psycopg {psycopg.__version__}, libpq {psycopg.pq.version()}")
