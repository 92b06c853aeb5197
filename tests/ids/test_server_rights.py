"""Leases of real servers as users with few rights: the documented ones suffice, and a missing one is named."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import needs
import pytest
from ids_testing import in_threads
from servers import PostgreSQLServer, RedisServer, Server, ZooKeeperServer, running, use_all

from senet_fast.ids import Layout, LeaseError, Snowflake, leases

TTL = 60.0  # what these tests wait for is never the end of a lease
_numbers = count()


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    with running(PostgreSQLServer(tmp_path_factory.mktemp("postgresql"))) as server:
        yield server  # type: ignore[misc]


class Role:
    """A role without any right, a schema that it may not use, and leases that it takes of a table there."""

    def __init__(self, server: PostgreSQLServer) -> None:
        import psycopg

        self.name, self.schema = f"role{(number := next(_numbers))}", f"schema{number}"
        self.table = f"{self.schema}.workers"
        self.server = server
        self.admin = psycopg.connect(server.address, autocommit=True)
        self.address = server.address.replace("user=postgres", f"dbname=postgres user={self.name}")
        self.run(f"CREATE ROLE {self.name} LOGIN; CREATE SCHEMA {self.schema}")

    def run(self, statements: str) -> None:
        self.admin.execute(statements.encode())

    def lease(self, connect: Any = None, table: str = "", options: str = "") -> leases.PostgreSQL:
        address = self.address + (f" options='{options}'" if options else "")
        return leases.PostgreSQL(connect or address, table=table or self.table, ttl=TTL, workers=[4, 5], wait=0.0)


@pytest.fixture
def role(postgresql: PostgreSQLServer) -> Iterator[Role]:
    role = Role(postgresql)
    yield role
    role.admin.close()


def test_postgresql_without_the_right_to_make_a_table(role: Role, own_layout: Layout) -> None:
    for missing, given in (
        (r"SELECT \(and USAGE on the schema\)", "SELECT 1"),
        ("CREATE on the schema, where the table is missing", f"GRANT USAGE ON SCHEMA {role.schema} TO {role.name}"),
        (r"SELECT \(and USAGE on the schema\)", leases.PostgreSQL.ddl(role.table)),
        ("INSERT, for worker ids that have no row yet", f"GRANT SELECT ON {role.table} TO {role.name}"),
        ("SELECT and UPDATE", f"GRANT INSERT ON {role.table} TO {role.name}"),
    ):
        role.run(given)
        with pytest.raises(LeaseError, match=f"permission denied.*needs {missing}.*PostgreSQL.ddl\\('{role.table}', "):
            use_all(role.lease(), own_layout)
    role.run(f"REVOKE ALL ON {role.table} FROM {role.name}; REVOKE ALL ON SCHEMA {role.schema} FROM {role.name}")
    role.run(leases.PostgreSQL.ddl(role.table, role.name))
    with Snowflake.acquire(role.lease(), own_layout) as generator:
        assert generator.next_id() > 0
    role.run(f"REVOKE INSERT ON {role.table} FROM {role.name}")
    use_all(role.lease(), own_layout)  # the rows are there


def test_postgresql_gives_a_right_back_while_a_lease_is_held(role: Role, own_layout: Layout) -> None:
    """A renewal that is refused is tried again: LeaseError would end them."""
    role.run(leases.PostgreSQL.ddl(role.table, role.name))
    lease = role.lease()
    lease.acquire(own_layout)
    role.run(f"REVOKE UPDATE ON {role.table} FROM {role.name}")
    with pytest.raises(PermissionError, match="the role needs SELECT and UPDATE"):
        lease.renew()
    role.run(leases.PostgreSQL.ddl(role.table, role.name))
    lease.renew()
    lease.release(0)


def test_postgresql_makes_no_second_table_by_its_search_path(role: Role, own_layout: Layout) -> None:
    role.run(leases.PostgreSQL.ddl(f"{role.schema}.Workers{role.name}", role.name))
    role.run(f"CREATE SCHEMA {role.name} AUTHORIZATION {role.name}")  # where it could make one
    with pytest.raises(LeaseError, match=f"there is one in the schema {role.schema}; name it, as in table='schema"):
        role.lease(table=f"Workers{role.name}").acquire(own_layout)
    use_all(role.lease(table=f"{role.schema}.Workers{role.name}"), own_layout)
    use_all(role.lease(table=f"Workers{role.name}", options=f"-c search_path={role.schema}"), own_layout)
    use_all(role.lease(table=f"more{role.name}"), own_layout)  # there is none: made
    with pytest.raises(LeaseError, match=r'schema "nowhere" does not exist; make the schema and name it'):
        role.lease(table="nowhere.workers").acquire(own_layout)
    with pytest.raises(LeaseError, match=r"no schema has been selected to create in; .*table='ids\.few'"):
        role.lease(table="few", options="-c search_path=").acquire(own_layout)
    with pytest.raises(ValueError, match="table is 'a;b'; expected an SQL name"):
        leases.PostgreSQL.ddl("a;b")


def test_postgresql_that_only_reads(role: Role, own_layout: Layout) -> None:
    role.run(leases.PostgreSQL.ddl(role.table, role.name))
    use_all(role.lease(), own_layout)
    reads = role.lease(options="-c default_transaction_read_only=on")
    with pytest.raises(LeaseError, match="the transaction may only read: this is a standby"):
        reads.acquire(own_layout)
    signal, server = role.server.folder / "data" / "standby.signal", role.server
    role.admin.close()
    server.stop()
    signal.touch()
    try:
        server.start()
        with pytest.raises(LeaseError, match="the transaction may only read: this is a standby"):
            role.lease().acquire(own_layout)
    finally:
        import psycopg

        with psycopg.connect(server.address, autocommit=True) as admin:
            admin.execute("SELECT pg_promote()")
    use_all(role.lease(), own_layout)


def test_postgresql_with_settings_and_connections_of_ones_own(role: Role, own_layout: Layout) -> None:
    import psycopg
    from psycopg.rows import dict_row

    role.run(leases.PostgreSQL.ddl(role.table, role.name))
    use_all(role.lease(lambda: psycopg.connect(role.address, autocommit=True, row_factory=dict_row)), own_layout)

    def often() -> None:
        address = f"{role.address} options='-c default_transaction_isolation=serializable'"
        for _ in range(15):
            use_all(leases.PostgreSQL(address, table=role.table, ttl=TTL, workers=range(20)), own_layout)

    in_threads([often] * 4)  # serializable transactions would fail in each other's way
    pools = needs.library("psycopg_pool")
    with pools.ConnectionPool(role.address, min_size=1, max_size=1) as pool:
        use_all(role.lease(pool.connection), own_layout)


def psycopg_async(role: Role) -> Any:
    return needs.library("psycopg").AsyncConnection.connect(role.address)


def psycopg2(role: Role) -> Any:
    return needs.library("psycopg2").connect(role.address)


def asyncpg(role: Role) -> Any:
    return needs.library("asyncpg").connect(host="127.0.0.1")


OTHER_DRIVERS = {
    psycopg_async: "a builtins.coroutine",
    psycopg2: "a psycopg2.extensions.connection",
    asyncpg: "a builtins.coroutine",
}


@pytest.mark.parametrize("driver", OTHER_DRIVERS)
def test_postgresql_refuses_other_drivers_by_name(
    driver: Callable[[Role], Any], role: Role, own_layout: Layout
) -> None:
    with pytest.raises(TypeError, match=f"connect returned {OTHER_DRIVERS[driver]}; expected .* of psycopg 3"):
        role.lease(lambda: driver(role)).acquire(own_layout)


def test_postgresql_refuses_engines_and_connections_by_name(role: Role, own_layout: Layout) -> None:
    with pytest.raises(TypeError, match=r"connect is a psycopg\.Connection; expected a connection string"):
        role.lease(role.admin)
    sqlalchemy = needs.library("sqlalchemy")
    url = f"postgresql+psycopg://{role.name}@127.0.0.1:{role.server.port}/postgres"
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with pytest.raises(TypeError, match=r"connect is a sqlalchemy\.engine\.base\.Engine; expected .* of psycopg 3"):
        role.lease(engine).acquire(own_layout)


class Driver:
    """What other drivers' connections look like to the lease, for machines that have none of them."""

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *error: object) -> None:
        self.left = True


def test_postgresql_refuses_what_is_no_connection(role: Role, own_layout: Layout) -> None:
    made = Driver()
    with pytest.raises(TypeError, match=r"connect returned a \w+\.Driver; expected"):
        role.lease(lambda: made).acquire(own_layout)
    assert made.left
    with pytest.raises(TypeError, match=r"connect returned a builtins\.coroutine; expected"):
        role.lease(lambda: asyncio.sleep(0)).acquire(own_layout)
    with pytest.raises(TypeError, match=r"connect returned a builtins\.NoneType; expected"):
        role.lease(lambda: None).acquire(own_layout)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def redis_user(redis_server: Server) -> Callable[..., leases.Redis]:
    """A lease by a user with a rule."""
    import redis

    admin = redis.Redis(port=redis_server.port, socket_timeout=20)

    def lease(rule: str, **options: Any) -> leases.Redis:
        user = f"user{next(_numbers)}"
        admin.execute_command("ACL", "SETUSER", user, "reset", "on", ">word", *rule.split())
        client = redis.Redis(port=redis_server.port, username=user, password="word", socket_timeout=20)
        options = {"ttl": 0.1, "wait": 30.0, "workers": range(3), **options}  # a new store waits for ttl
        return leases.Redis(client, **options)

    return lease


def test_redis_with_the_documented_rights(redis_user: Callable[..., leases.Redis], own_layout: Layout) -> None:
    use_all(redis_user(leases.Redis.acl()), own_layout)
    strange = r"a[b]*\?"
    use_all(redis_user(leases.Redis.acl(strange), prefix=strange), own_layout)
    with pytest.raises(LeaseError, match="keys"):
        use_all(redis_user(leases.Redis.acl(strange), prefix="ab"), own_layout)
    with pytest.raises(ConnectionError, match="0 replicas of Redis confirmed"):  # WAIT itself is allowed
        use_all(redis_user(leases.Redis.acl(replicas=1), replicas=1), own_layout)


@pytest.mark.parametrize("missing", [*leases.Redis.acl(replicas=1).split()])
def test_redis_without_a_right(redis_user: Callable[..., leases.Redis], own_layout: Layout, missing: str) -> None:
    """Each of the documented rights is needed, and named where it is missing."""
    rights = [right for right in leases.Redis.acl(replicas=1).split() if right != missing]
    name = {"~senet_fast:*": "keys"}.get(missing, missing[1:])
    named = rf"(?i:\b{name}\b).*; expected at least ~senet_fast:\* \+eval"
    lease = redis_user(" ".join(rights), replicas=int(missing == "+wait"))
    with pytest.raises(LeaseError, match=named):
        use_all(lease, own_layout)


def test_redis_keys_of_a_layout_are_in_one_slot(own_layout: Layout, redis_user: Callable[..., leases.Redis]) -> None:
    from redis.crc import key_slot

    for prefix in ("senet_fast", "app:ids", "{app}"):
        lease = redis_user(leases.Redis.acl(prefix), prefix=prefix)
        use_all(lease, own_layout)
        assert all(key.startswith(f"{prefix}:") for key in lease._keys)
        assert len({key_slot(key.encode()) for key in lease._keys}) == 1


def test_zookeeper_without_a_right(tmp_path: Path, own_layout: Layout) -> None:
    with running(ZooKeeperServer(tmp_path)) as server:
        from kazoo.client import KazooClient
        from kazoo.security import make_digest_acl

        rights = [make_digest_acl("app", "word", all=True)]
        auth = [("digest", "app:word")]
        mine = KazooClient(f"127.0.0.1:{server.port}", default_acl=rights, auth_data=auth)
        other = KazooClient(f"127.0.0.1:{server.port}")
        try:
            mine.start(timeout=30)
            other.start(timeout=30)
            use_all(leases.ZooKeeper(mine, ttl=TTL), own_layout)
            with pytest.raises(LeaseError, match=r"NoAuthError.*auth_data may create, .* under /senet_fast"):
                leases.ZooKeeper(other, ttl=TTL).acquire(own_layout)
        finally:
            for client in (mine, other):
                client.stop()
                client.close()
