"""Servers of the leases, on loopback, with data that is thrown away."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import needs
from ids_testing import LIMIT_S

from senet_fast.ids import Layout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A server that a test can pause, restart and kill. `lease` is the code that makes a lease of it."""

    package: str  # of Python
    debian: str  # the package that brings the server
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.user: dict[str, Any] = {}  # whom it runs as, for subprocess
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str] | None:
        """None where it is not installed."""
        raise NotImplementedError

    def ping(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        command = self.command()
        assert command is not None
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self.user
            )
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                return self.ping()
            except Exception as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log_end = (self.folder / "log").read_text()[-2000:]
                    raise RuntimeError(f"{command[0]} does not answer: {error!r}\n{log_end}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, self.stop_signal)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None


class RedisServer(Server):
    package, debian = "redis", "redis-server"

    def command(self) -> list[str] | None:
        found = shutil.which("redis-server")
        return found and [found, *f"--port {self.port} --bind 127.0.0.1 --appendonly yes --appendfsync always".split()]  # type: ignore[return-value]

    def ping(self) -> None:
        import redis

        redis.Redis(port=self.port, socket_timeout=2).ping()

    def lease(self, **options: Any) -> str:
        return f"leases.Redis('redis://127.0.0.1:{self.port}', **{options})"


class PostgreSQLServer(Server):
    package, debian = "psycopg", "postgresql"
    stop_signal = signal.SIGINT  # SIGTERM would wait for its clients

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if os.getuid() == 0:  # it refuses to run as root, and pytest's folders are root's alone
            self.user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            self.folder = Path(tempfile.mkdtemp(prefix="senet_fast_postgresql_"))
            self.folder.chmod(0o755)
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def command(self) -> list[str] | None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        found = shutil.which("initdb") or (versions and str(versions[-1] / "initdb"))
        if not found or not Path(found).exists():
            return None
        data, bin_ = self.folder / "data", Path(found).parent
        if not data.exists():
            data.mkdir(mode=0o700)
            if self.user:
                shutil.chown(data, "postgres")
            made = subprocess.run(
                [found, "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"],
                capture_output=True,
                timeout=LIMIT_S,
                cwd=self.folder,
                **self.user,
            )
            assert made.returncode == 0, made.stderr
        settings = f"-p {self.port} -k {data} -c listen_addresses=127.0.0.1".split()
        return [str(bin_ / "postgres"), "-D", str(data), *settings]

    @property
    def address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres"

    def ping(self) -> None:
        import psycopg

        psycopg.connect(self.address, connect_timeout=2).close()

    def lease(self, **options: Any) -> str:
        return f"leases.PostgreSQL({self.address!r}, **{options})"


class MariaDBServer(Server):
    """For SQL only: no lease is kept there."""

    package, debian = "pymysql", "mariadb-server"

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    def command(self) -> list[str] | None:
        found, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
        if not found or not install:
            return None
        data = ["--no-defaults", f"--datadir={self.folder / 'data'}"]
        if os.getuid() == 0:
            data.append("--user=root")
        if not (self.folder / "data").exists():
            made = subprocess.run(
                [install, *data, "--auth-root-authentication-method=normal", "--skip-test-db"],
                capture_output=True,
                timeout=LIMIT_S,
            )
            assert made.returncode == 0, made.stdout + made.stderr
        return [found, *data, f"--socket={self.socket}", "--skip-networking", f"--pid-file={self.folder / 'pid'}"]

    def ping(self) -> None:
        import pymysql

        pymysql.connect(unix_socket=self.socket, user="root", connect_timeout=2).close()


class ZooKeeperServer(Server):
    package, debian = "kazoo", "zookeeper"

    def command(self) -> list[str] | None:
        jars = [*Path("/usr/share/java").glob("zookeeper*.jar"), *Path("/etc/zookeeper").glob("conf_example")]
        java = shutil.which("java")
        if not java or len(jars) < 2:
            return None
        config = self.folder / "zoo.cfg"
        config.write_text(
            f"tickTime=200\ndataDir={self.folder}/data\nclientPort={self.port}\nclientPortAddress=127.0.0.1\n"
            "admin.enableServer=false\nminSessionTimeout=400\n"
        )
        path = ":".join([str(config.parent), "/usr/share/java/*"])
        return [java, "-Xmx128m", "-cp", path, "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(config)]

    def ping(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"srvr")
            assert connection.recv(100)

    def lease(self, **options: Any) -> str:
        client = f"kazoo.client.KazooClient('127.0.0.1:{self.port}', timeout=0.8)"
        return f"leases.ZooKeeper(started({client}), **{options})"


class EtcdServer(Server):
    package, debian = "json", "etcd-server"

    def __init__(self, folder: Path, *options: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(folder)
        self.options, self.context = options, context
        self.address = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"

    def command(self) -> list[str] | None:
        found = shutil.which("etcd")
        peer = "http://127.0.0.1:0"
        listen = ["--listen-client-urls", self.address, "--advertise-client-urls", self.address, *self.options]
        listen += ["--listen-peer-urls", peer]
        return found and [found, "--data-dir", str(self.folder / "data"), *listen, "--log-level", "error"]  # type: ignore[return-value]

    def ping(self) -> None:
        urllib.request.urlopen(f"{self.address}/health", timeout=2, context=self.context).read()

    def lease(self, **options: Any) -> str:
        return f"leases.Etcd({self.address!r}, **{options})"


SERVERS: dict[str, Callable[[Path], Server]] = {
    "redis": RedisServer,
    "postgresql": PostgreSQLServer,
    "zookeeper": ZooKeeperServer,
    "etcd": EtcdServer,
}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Skips the test where the server, or the Python package of its lease, is not installed."""
    if server.command() is None:
        needs.lacking(f"a program for {type(server).__name__}", server.debian)
    needs.library(server.package)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def use_all(lease: Any, layout: Layout) -> None:
    """All that a holder asks of a server."""
    assert lease.acquire(layout).until_ms <= lease.renew()
    lease.release(0)


# What a process needs to evaluate Server.lease().
PRELUDE = """
from senet_fast.ids import leases
clients = []
def started(client):
    client.start(timeout=20)
    clients.append(client)
    return client
try:
    import kazoo.client
except ImportError:
    pass
"""
