"""Worker ids leased from PostgreSQL, by psycopg 3 (`pip install senet-fast[postgresql]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from senet_fast.ids.leases._held import Grant
from senet_fast.ids.leases._store import StoreLease, Taken

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_MAKE = """
CREATE TABLE IF NOT EXISTS {table} (
  layout text, worker integer, owner text, until_ms bigint NOT NULL, PRIMARY KEY (layout, worker)
)
"""

_FILL = """
INSERT INTO {table} SELECT %s, worker, NULL, 0 FROM unnest(%s::integer[]) AS worker ON CONFLICT DO NOTHING
"""

_TAKE = f"""
WITH free AS (
  SELECT worker, until_ms FROM {{table}} WHERE layout = %(layout)s AND worker = ANY(%(workers)s) AND until_ms <= {_NOW}
  ORDER BY worker LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE {{table}} AS lease SET owner = %(owner)s, until_ms = {_NOW} + %(ttl)s
FROM free WHERE lease.layout = %(layout)s AND lease.worker = free.worker
RETURNING lease.worker, free.until_ms, lease.until_ms
"""

_SOONEST = f"SELECT count(*), min(until_ms) - {_NOW} FROM {{table}} WHERE layout = %s AND worker = ANY(%s)"

_EXTEND = f"""
UPDATE {{table}} SET until_ms = greatest(until_ms, {_NOW} + %(ttl)s)
WHERE layout = %(layout)s AND worker = %(worker)s AND owner = %(owner)s RETURNING until_ms
"""

_GIVE_BACK = """
UPDATE {table} SET owner = NULL, until_ms = least(until_ms, %(unused)s)
WHERE layout = %(layout)s AND worker = %(worker)s AND owner = %(owner)s
"""


class PostgreSQL(StoreLease):
    """A worker id that a PostgreSQL server leases, by its own clock.

    connect: a connection string, or a callable that returns a new psycopg connection. One is opened for each renewal
        and closed again, so that a restarted server and pgbouncer's transaction mode are no concern.
    table: made where it is not there; one row for each worker id of each layout. After restoring an older copy of it,
        wait for ttl before anyone acquires.
    """

    def __init__(
        self, connect: str | Callable[[], Any] = "", *, table: str = "senet_fast_workers", **options: Any
    ) -> None:
        super().__init__(**options)
        if not all(part.isidentifier() for part in table.split(".")):
            raise ValueError(f"table is {table!r}; expected an SQL name, with or without its schema")
        self._connect = connect
        self._table = table
        self._layout = ""

    def _execute(self, *statements: tuple[str, Any]) -> Any:
        """The first row of the last statement's answer, in one transaction that is on disk when it ends."""
        if callable(self._connect):
            connection = self._connect()
        else:
            import psycopg

            connection = psycopg.connect(self._connect, connect_timeout=max(2, self._ttl_ms // 3000))
        row = None
        with connection:  # commits, and closes
            connection.execute("SET LOCAL synchronous_commit = on")
            for statement, values in statements:
                cursor = connection.execute(statement.format(table=self._table), values)
                row = cursor.fetchone() if cursor.description else None
        return row

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        self._layout = layout
        which = (layout, list(workers))
        try:
            count, soonest_ms = self._execute((_SOONEST, which))
        except Exception as error:
            if getattr(error, "sqlstate", None) != "42P01":  # no such table
                raise
            self._make()
            count = 0
        if count < len(which[1]):
            self._execute((_FILL, which))
        values = {"layout": layout, "workers": which[1], "owner": self._owner, "ttl": self._ttl_ms}
        if row := self._execute((_TAKE, values)):
            return Grant(*row)
        _, soonest_ms = self._execute((_SOONEST, which))
        return Taken(max(0.005, float(soonest_ms) / 1000))

    def _make(self) -> None:
        try:
            self._execute((_MAKE, None))
        except Exception as error:  # another made it at the same time
            if getattr(error, "sqlstate", None) not in ("23505", "42P07"):
                raise

    def _extend(self) -> int | None:
        row = self._execute((_EXTEND, self._values()))
        return row[0] if row else None

    def _give_back(self, unused_from_ms: int) -> None:
        self._execute((_GIVE_BACK, {**self._values(), "unused": unused_from_ms}))

    def _values(self) -> dict[str, Any]:
        return {"layout": self._layout, "worker": self._worker_id, "owner": self._owner, "ttl": self._ttl_ms}
