"""Worker ids leased from PostgreSQL, by psycopg 3 (`pip install senet-fast[postgresql]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases._store import StoreLease, Taken

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_BEGIN = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on"

_MAKE = """
CREATE TABLE IF NOT EXISTS {table} (
  layout text, worker integer, owner text, until_ms bigint NOT NULL, PRIMARY KEY (layout, worker)
)
"""

_ELSEWHERE = """
SELECT string_agg(relnamespace::regnamespace::text, ', ') FROM pg_class
WHERE relname = lower(%s) AND relkind IN ('r', 'p') AND relpersistence <> 't' AND NOT pg_table_is_visible(oid)
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

# What a role needs for each statement, and all of them together.
_NEEDS = {
    _MAKE: "CREATE on the schema, where the table is missing",
    _FILL: "INSERT, for worker ids that have no row yet",
    _SOONEST: "SELECT (and USAGE on the schema)",
    **dict.fromkeys((_TAKE, _EXTEND, _GIVE_BACK), "SELECT and UPDATE (and USAGE on the schema)"),
}
_RIGHTS = "SELECT, INSERT, UPDATE"


_EXPECTED = (
    "a connection string, or a callable that returns a connection of psycopg 3 (psycopg.connect) or a pool's"
    " connection(); psycopg can be installed beside psycopg2, asyncpg and SQLAlchemy's other drivers"
)


class PostgreSQL(StoreLease):
    """A worker id that a PostgreSQL server leases, by its own clock.

    connect: a connection string, or a callable that returns a new connection of psycopg 3, or a context manager of one,
        such as the `connection` of a psycopg_pool.ConnectionPool. One is opened for each renewal and closed again, so
        that a restarted server and pgbouncer's transaction mode are no concern.
    table: made where it is not there, if the role may; otherwise `PostgreSQL.ddl()` is what an administrator runs. One
        row for each worker id of each layout. Without its schema, each role's search_path decides which table that is,
        and two tables know nothing of each other's holders. After restoring an older copy of it, wait for ttl before
        anyone acquires.
    """

    def __init__(
        self, connect: str | Callable[[], Any] = "", *, table: str = "senet_fast_workers", **options: Any
    ) -> None:
        super().__init__(**options)
        if not (isinstance(connect, str) or callable(connect)):
            raise TypeError(f"connect is a {_name(connect)}; expected {_EXPECTED}")
        _check_table(table)
        self._connect = connect
        self._table = table
        self._layout = ""
        self._statement = ""  # that ran last

    @staticmethod
    def ddl(table: str = "senet_fast_workers", role: str | None = None) -> str:
        """The statements that make the table, and those that give `role` (as SQL writes it) no more than it needs."""
        _check_table(table)
        schema = table.rpartition(".")[0]
        statements = [_MAKE.format(table=table).strip()]
        if role is not None:
            statements += [f"GRANT USAGE ON SCHEMA {schema} TO {role}"] if schema else []
            statements += [f"GRANT {_RIGHTS} ON {table} TO {role}"]
        return "".join(f"{statement};\n" for statement in statements)

    def _execute(self, *statements: tuple[str, Any]) -> Any:
        """The first row of the last statement's answer, in one transaction that is on disk when it ends."""
        import psycopg

        if isinstance(self._connect, str):
            opened: Any = psycopg.connect(self._connect, connect_timeout=max(2, self._ttl_ms // 3000))
        else:
            opened = self._connect()
        if not hasattr(opened, "__enter__"):
            if hasattr(opened, "close") and hasattr(opened, "send"):  # a coroutine, which would be said to be forgotten
                opened.close()
            raise TypeError(f"connect returned a {_name(opened)}; expected {_EXPECTED}")
        row = None
        with opened as connection:  # closes it, or gives it back to its pool
            if not isinstance(connection, psycopg.Connection):
                raise TypeError(f"connect returned a {_name(connection)}; expected {_EXPECTED}")
            with connection.transaction(), connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
                cursor.execute(_BEGIN)
                for statement, values in statements:
                    self._statement = statement
                    cursor.execute(statement.format(table=self._table), values)
                    row = cursor.fetchone() if cursor.description else None
        return row

    def _refusal(self, error: Exception) -> str | None:
        said = str(error).splitlines()[0] if str(error) else ""
        match getattr(error, "sqlstate", None):
            case "42501":
                needs = _NEEDS.get(self._statement, _RIGHTS)
                missing = f"the role needs {needs}; leases.PostgreSQL.ddl({self._table!r}, role) has all it needs"
            case "3F000":  # no such schema, or none on the search_path
                missing = (
                    f"make the schema and name it, as in table='ids.{self._table.rpartition('.')[2]}';"
                    " leases.PostgreSQL.ddl(table, role) has the table and the grants"
                )
            case "25006":
                missing = (
                    "the transaction may only read: this is a standby, whose primary"
                    " target_session_attrs=read-write finds, or default_transaction_read_only is on"
                )
            case _:
                return None
        return f"PostgreSQL, table {self._table}: {said}; {missing}"

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
        # A second table of this name would be a second store, which knows nothing of the first one's holders.
        if "." not in self._table and (elsewhere := self._execute((_ELSEWHERE, (self._table,)))[0]):
            raise LeaseError(
                f"PostgreSQL, table {self._table}: none on the search_path of this role, but there is one in the schema"
                f" {elsewhere}; name it, as in table='{elsewhere.split(', ')[0]}.{self._table}', and give the role"
                " USAGE on that schema; or run leases.PostgreSQL.ddl() to make another"
            )
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


def _check_table(table: str) -> None:
    if not all(part.isidentifier() for part in table.split(".")):
        raise ValueError(f"table is {table!r}; expected an SQL name, with or without its schema")


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
