"""What people weigh against Snowflake IDs, UUIDs and servers' counters: `python -m benchmarks.ids.alternatives`.

The servers are the caller's, on loopback: --redis URL, --postgresql CONNINFO. Without them their rows are left out.
"""

import argparse
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import rows
from benchmarks.ids.bench_snowflake import loop
from senet_fast.ids import TWITTER, WIDE, Snowflake
from senet_fast.measure import interleave
from senet_fast.text import ratio, table

BATCH = 1000
BASE = "next_id, 41/10/12"

Draw = Callable[[], object]
# name: IDs drawn by one call, the call, and what it gives up
Row = tuple[int, Draw, str]


def ours() -> dict[str, Row]:
    one, many = Snowflake(1, TWITTER).next_id, Snowflake(2, WIDE)
    return {
        BASE: (100, partial(loop, one, 100), "64 bits; in order per worker, to the clocks' difference between workers"),
        f"next_ids({BATCH}), 41/6/16": (BATCH, partial(many.next_ids, BATCH), "the same, into NumPy"),
    }


def uuids() -> dict[str, Row]:
    rows: dict[str, Row] = {
        "uuid.uuid4": (100, partial(loop, uuid.uuid4, 100), "128 bits; no order, so random pages of an index"),
    }
    if uuid7 := getattr(uuid, "uuid7", None):  # Python 3.14
        rows["uuid.uuid7"] = 100, partial(loop, uuid7, 100), "128 bits; in order per process"
    try:
        import uuid_utils
    except ImportError:
        return rows
    rows["uuid_utils.uuid4"] = 100, partial(loop, uuid_utils.uuid4, 100), "128 bits; no order; not uuid.UUID"
    rows["uuid_utils.uuid7"] = 100, partial(loop, uuid_utils.uuid7, 100), "128 bits; in order to a ms; not uuid.UUID"
    return rows


def redis_rows(url: str) -> dict[str, Row]:
    import redis

    client = redis.Redis.from_url(url)
    key = "senet_fast:benchmark"
    return {
        "Redis INCR": (1, partial(client.incr, key), "a round trip each; one server; no time in the ID"),
        f"Redis INCRBY {BATCH}": (
            BATCH,
            partial(client.incrby, key, BATCH),
            "order between processes; the same server",
        ),
    }


def postgresql_rows(conninfo: str) -> dict[str, Row]:
    import psycopg

    connection = psycopg.connect(conninfo, autocommit=True)
    connection.execute("CREATE TEMPORARY TABLE drawn (id bigint GENERATED ALWAYS AS IDENTITY, x int)")
    single = "INSERT INTO drawn (x) VALUES (1) RETURNING id"
    batch = f"INSERT INTO drawn (x) SELECT 1 FROM generate_series(1, {BATCH}) RETURNING id"
    return {
        "PostgreSQL identity": (
            1,
            lambda: connection.execute(single).fetchone(),
            "a round trip each, known after the INSERT; no time in the ID (temporary table: no fsync)",
        ),
        f"PostgreSQL identity, {BATCH} rows": (
            BATCH,
            lambda: connection.execute(batch).fetchall(),
            "the same, a round trip for all; the row's write is included",
        ),
    }


class All(NamedTuple):
    """The one row: all of them take turns."""

    id: str = "all"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for each ID, and what each alternative is."""
    found = ours() | uuids()
    found |= redis_rows(options.redis) if options.redis else {}
    found |= postgresql_rows(options.postgresql) if options.postgresql else {}
    times = interleave({name: draw for name, (_, draw, _) in found.items()}, options.seconds, calls=9)
    notes = {name: note for name, (_, _, note) in found.items()}
    seconds = {name: times[name] / count for name, (count, _, _) in found.items()}
    return {"seconds": seconds, "believable": times.believable, "notes": notes}


def markdown(results: rows.Results) -> str:
    (row,) = results["rows"]
    base = row["seconds"][BASE]
    lines = [
        [name, f"{seconds * 1e9:,.1f}", ratio(seconds, base), row["notes"][name]]
        for name, seconds in row["seconds"].items()
    ]
    note = "Servers over loopback. Medians of ns for each ID."
    return f"{note}\n\n" + table(("alternative", "ns per ID", f"/ {BASE}", "what it is, or gives up"), lines)


def main() -> None:
    parser = rows.command("ids_alternatives", __doc__, "all", seconds=10.0)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--postgresql", metavar="CONNINFO")
    options = parser.parse_args()
    rows.run(options, [All()], lambda _: measure(options), markdown, "numpy")


if __name__ == "__main__":
    main()
