"""The SQL that decodes and bounds IDs, run by real databases, against Layout."""

import importlib.util
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import needs
import pytest
from ids_testing import CHECKOUT, run_program
from servers import MariaDBServer, PostgreSQLServer, Server, running

from senet_fast import ids
from senet_fast.ids import TWITTER, Layout
from senet_fast.ids.sql import functions

LAYOUTS = {name: layout for name, layout in vars(ids).items() if isinstance(layout, Layout)}
LAYOUTS["odd"] = Layout(timestamp=33, worker=7, sequence=9, epoch_ms=1_234_567_890_123, tick_ms=7)
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_TIME = datetime(1971, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(2290, 1, 1, tzinfo=UTC)  # ClickHouse's DateTime64 ends in 2299


def fields(layout: Layout, seed: int) -> list[tuple[int, int, int, int]]:
    """IDs, and what Layout decodes them to."""
    last_ms = min(layout._end_ms, int(LAST_TIME.timestamp() * 1000)) - 1
    source = random.Random(seed)
    rows = []
    for _ in range(300):
        time = source.choice([source.randint(layout.epoch_ms, last_ms), layout.epoch_ms, last_ms])
        worker = source.choice([0, layout.worker.max, source.randint(0, layout.worker.max)])
        number = layout.encode(time, worker, source.choice([0, layout.sequence.max, 1]))
        decoded = layout.decode(number)
        rows.append((number, decoded.timestamp_ms, decoded.worker_id, decoded.sequence))
    return sorted(set(rows))


def bounds(layout: Layout, seed: int) -> list[tuple[datetime, int]]:
    """Times to the microsecond, most of them next to a tick's begin, and the smallest ID of each."""
    source = random.Random(seed)
    times = [FIRST_TIME, LAST_TIME]
    for _ in range(300):
        first_ms = source.choice([layout.epoch_ms, source.randint(layout.epoch_ms, 9 * 10**12), layout._end_ms])
        tick_ms = layout.epoch_ms + (first_ms - layout.epoch_ms) // layout.tick_ms * layout.tick_ms
        times.append(UNIX_EPOCH + timedelta(milliseconds=tick_ms, microseconds=source.choice([0, 1, -1, 1000, -999])))
    within = [time for time in times if FIRST_TIME <= time <= LAST_TIME]
    rows = [(time, layout.min_id(-(-microseconds(time) // 1000))) for time in within]
    assert len(rows) > 50
    return rows


def microseconds(time: datetime) -> int:
    return (time - UNIX_EPOCH) // timedelta(microseconds=1)


def milliseconds(time: datetime) -> int:
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    assert time.microsecond % 1000 == 0
    return (time - UNIX_EPOCH) // timedelta(milliseconds=1)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(PostgreSQLServer(tmp_path_factory.mktemp("postgresql"))) as server:
        yield server


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(MariaDBServer(tmp_path_factory.mktemp("mariadb"))) as server:
        yield server


@pytest.mark.parametrize("name", LAYOUTS)
def test_postgresql(postgresql: PostgreSQLServer, name: str, run_seed: int) -> None:
    import psycopg

    layout = LAYOUTS[name]
    with psycopg.connect(postgresql.address, autocommit=True) as connection:
        connection.execute("SET timezone = 'America/St_Johns'")
        connection.execute(functions("postgresql", layout))
        query = (
            "SELECT id, snowflake_timestamp(id), snowflake_worker(id), snowflake_sequence(id)"
            " FROM unnest(%s::bigint[]) AS id"
        )
        rows = fields(layout, run_seed)
        found = connection.execute(query, ([row[0] for row in rows],)).fetchall()
        assert [(row[0], milliseconds(row[1]), *row[2:]) for row in found] == rows
        for time, first in bounds(layout, run_seed):
            if first < 1 << 63:
                assert connection.execute("SELECT snowflake_min_id(%s)", (time,)).fetchone() == (first,)
            else:
                with pytest.raises(psycopg.errors.NumericValueOutOfRange):
                    connection.execute("SELECT snowflake_min_id(%s)", (time,))
        assert connection.execute("SELECT snowflake_min_id(NULL), snowflake_timestamp(NULL)").fetchone() == (None, None)


def test_postgresql_partitions(postgresql: PostgreSQLServer) -> None:
    """The recipe of docs/ids.md: rows find the partition of their time, and a range of time reads only its own."""
    import psycopg

    recipe = next(part for part in (CHECKOUT / "docs/ids.md").read_text().split("```sql\n")[1:] if "PARTITION" in part)
    with psycopg.connect(postgresql.address, autocommit=True) as connection:
        connection.execute(functions("postgresql", TWITTER))
        connection.execute(recipe.split("```")[0])
        times = [datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 31, 23, 59, 59, 999_000, UTC)]
        for time in [*times, datetime(2024, 6, 1, tzinfo=UTC)]:
            connection.execute("INSERT INTO orders VALUES (%s, 'x')", (TWITTER.encode(time, 5, 6),))
        with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
            connection.execute("INSERT INTO orders VALUES (%s, 'x')", (TWITTER.encode(times[0]) - 1,))
        of_may = connection.execute("SELECT snowflake_timestamp(id) FROM orders_2024_05 ORDER BY id").fetchall()
        assert [time for (time,) in of_may] == times
        plan = connection.execute(
            "EXPLAIN SELECT * FROM orders"
            " WHERE id >= snowflake_min_id('2024-05-10Z') AND id < snowflake_min_id('2024-05-11Z')"
        ).fetchall()
        text = "\n".join(line for (line,) in plan)
        assert "orders_2024_05" in text
        assert "orders_2024_06" not in text


@pytest.mark.parametrize("name", LAYOUTS)
def test_mariadb(mariadb: MariaDBServer, name: str, run_seed: int) -> None:
    """The dialect "mysql": MySQL itself is in no package list of Debian or PyPI."""
    import pymysql
    from pymysql.constants import CLIENT

    layout = LAYOUTS[name]
    with pymysql.connect(unix_socket=mariadb.socket, user="root", client_flag=CLIENT.MULTI_STATEMENTS) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE DATABASE IF NOT EXISTS shop; USE shop; SET time_zone = '-03:30'")
        while cursor.nextset():
            pass
        cursor.execute(functions("mysql", layout))
        while cursor.nextset():
            pass
        query = "SELECT %s, snowflake_timestamp(%s), snowflake_worker(%s), snowflake_sequence(%s)"
        for row in fields(layout, run_seed):
            cursor.execute(query, [row[0]] * 4)
            (found,) = cursor.fetchall()
            assert (found[0], milliseconds(found[1]), *found[2:]) == row
        for time, first in bounds(layout, run_seed):
            ask = "SELECT snowflake_min_id(%s)", (time.replace(tzinfo=None).isoformat(" ", "microseconds"),)
            if first < 1 << 63:
                cursor.execute(*ask)
                assert cursor.fetchall() == ((first,),), time
            else:
                with pytest.raises(pymysql.err.MySQLError, match="out of range"):
                    cursor.execute(*ask)


@pytest.mark.parametrize("name", LAYOUTS)
def test_sqlite(name: str, run_seed: int) -> None:
    layout = LAYOUTS[name]
    rows = fields(layout, run_seed)
    alter, query = re.split(r"(?=^-- The IDs)", functions("sqlite", layout), flags=re.M)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO orders VALUES (?)", [row[:1] for row in rows])
        connection.executescript(alter)
        found = connection.execute("SELECT * FROM orders ORDER BY id").fetchall()
        assert [(row[0], milliseconds(datetime.fromisoformat(row[1])), *row[2:]) for row in found] == rows
        pairs = bounds(layout, run_seed)
        for (begin, first), (end, past) in pairwise(pairs):
            times = {"begin": microseconds(begin), "end": microseconds(end)}
            listed = [row[0] for row in connection.execute(query, times)]
            assert listed == [row[0] for row in rows if first <= row[0] < past]
        plan = str(connection.execute("EXPLAIN QUERY PLAN " + query, times).fetchall())
        assert "rowid>? AND rowid<?" in plan
        assert connection.execute("SELECT strftime('%s', '2024-05-01') * 1000000").fetchone() == (1714521600000000,)


CLICKHOUSE = """
import json, sys
from chdb.session import Session
session = Session()
for statement in json.loads(sys.argv[1]):
    print(json.dumps(str(session.query(statement, "TSV"))))
"""


@pytest.mark.parametrize("name", LAYOUTS)
def test_clickhouse(name: str, run_seed: int) -> None:
    """By the ClickHouse of the package chdb, in a process of its own, since its threads outlive the session."""
    if importlib.util.find_spec("chdb") is None:  # which crashes beside torch, so it is not imported here
        needs.lacking("the Python package chdb", None)
    layout = LAYOUTS[name]
    rows, pairs = fields(layout, run_seed), bounds(layout, run_seed)
    numbers = ", ".join(f"toInt64({row[0]})" for row in rows)
    queries = [
        "SELECT id, snowflake_timestamp(id), snowflake_worker(id), snowflake_sequence(id)"
        f" FROM (SELECT arrayJoin([{numbers}]) AS id)",
        "SELECT " + ", ".join(f"snowflake_min_id('{time.replace(tzinfo=None)}')" for time, _ in pairs),
    ]
    statements = functions("clickhouse", layout).removesuffix(";\n").split(";\n")
    said = run_program(CLICKHOUSE, json.dumps([*statements, *queries])).splitlines()[len(statements) :]
    decoded, first = ([line.split("\t") for line in json.loads(text).splitlines()] for text in said)
    read = [(int(row[0]), milliseconds(datetime.fromisoformat(row[1])), int(row[2]), int(row[3])) for row in decoded]
    assert read == rows
    assert first == [[str(number) for _, number in pairs]]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dialect", ["mysql", "clickhouse"])
def test_sql_is_parsed(dialect: str, name: str) -> None:
    """By somebody else's parser, where these databases are not installed."""
    sqlglot: Any = needs.library("sqlglot")
    parsed = sqlglot.parse(functions(dialect, LAYOUTS[name]), read=dialect)
    assert sum(isinstance(statement, sqlglot.exp.Create) for statement in parsed) == 4
    assert not any(isinstance(statement, sqlglot.exp.Command) for statement in parsed)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dialect is 'db2'; expected one of postgresql, mysql, sqlite, clickhouse"):
        functions("db2", TWITTER)
    with pytest.raises(ValueError, match="does not sort by time"):
        functions("sqlite", Layout(worker=10, timestamp=41, sequence=12, epoch_ms=0))
