"""Leases of real servers: kills, pauses, restarts, lost renewals, clocks that differ. Never an ID twice."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ids_testing import Generator, Program, wait_for
from servers import PRELUDE, SERVERS, Server, running

from senet_fast.ids import Layout, LeaseError, LeaseExpired, PythonSnowflake, Snowflake

TTL = 1.0  # a busy machine must not keep a renewal, a third of it, from being in time


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(SERVERS[request.param](tmp_path_factory.mktemp(request.param))) as made:
        yield made


@pytest.fixture
def lease(server: Server) -> Iterator[Callable[..., Any]]:
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    yield lambda **options: eval(server.lease(ttl=TTL, **options), names)
    for client in names["clients"]:
        client.stop()
        client.close()


@pytest.mark.parametrize("generator_class", [Snowflake, PythonSnowflake], ids=["compiled", "python"])
def test_holders_have_workers_of_their_own(
    lease: Callable[..., Any], generator_class: Generator, own_layout: Layout
) -> None:
    take = lambda **options: generator_class.acquire(lease(workers=[5, 6], **options), own_layout)  # noqa: E731
    with take() as one, take() as two:
        assert {one.worker_id, two.worker_id} == {5, 6}
        with pytest.raises(LeaseError, match=r"all 2 worker ids are held.*wait = 0\.0 s"):
            take(wait=0.0)
        time.sleep(2 * TTL)  # renewed
        numbers = [one.next_id(), two.next_id()]
        one.close()
        with take() as three:  # at once
            assert three.worker_id == one.worker_id
            assert three.next_id() > numbers[0]
    with pytest.raises(ValueError, match="worker_id = 1024"):
        generator_class.acquire(lease(workers=[1024]), own_layout)


DRAW = (
    PRELUDE
    + """
import time
from senet_fast.ids import Layout, LeaseExpired, Snowflake
skew_ms = {skew}
clock = (lambda: time.time_ns() // 1_000_000 + skew_ms) if skew_ms else None
generator = Snowflake.acquire({lease}, {layout!r}, clock=clock, max_backward_ms=5000, reacquire=False)
out = open({out!r}, "ab")
until = time.monotonic() + {seconds}
try:
    while True:
        out.write(generator.next_ids(40).tobytes())
        out.flush()
        if time.monotonic() >= until:
            break
        time.sleep(0.0005)
except LeaseExpired as error:
    print("LeaseExpired", error, flush=True)
"""
)


class Holder(Program):
    """Of worker 7: draws from it for so many seconds, or until its lease has expired."""

    def __init__(self, server: Server, layout: Layout, out: Path, seconds: float, skew: int = 0) -> None:
        self.out = out
        made = server.lease(ttl=TTL, workers=[7], wait=20.0)
        super().__init__(DRAW.format(lease=made, layout=layout, out=str(out), seconds=seconds, skew=skew))

    def begun(self) -> None:
        """Returns once it has drawn."""
        wait_for(lambda: self.process.poll() is not None or (self.out.exists() and self.out.stat().st_size))

    def ids(self) -> np.ndarray:
        data = self.out.read_bytes()
        return np.frombuffer(data[: len(data) // 8 * 8], np.int64)


def check(*holders: Holder) -> None:
    """In turn, unique, and each one's behind the one's before."""
    parts = [holder.ids() for holder in holders]
    assert all(part.size for part in parts)
    assert (np.diff(np.concatenate(parts)) > 0).all()


def test_a_killed_holder(server: Server, own_layout: Layout, tmp_path: Path) -> None:
    with Holder(server, own_layout, tmp_path / "one", 30) as one:
        one.begun()
        one.kill()
        with Holder(server, own_layout, tmp_path / "two", 0.2) as two:
            two.ended()
    check(one, two)


def test_a_paused_holder(server: Server, own_layout: Layout, tmp_path: Path) -> None:
    """Stopped past its lease while another takes over; then it goes on where it stood."""
    with Holder(server, own_layout, tmp_path / "one", 30) as one:
        one.begun()
        one.process.send_signal(signal.SIGSTOP)
        with Holder(server, own_layout, tmp_path / "two", 0.8) as two:
            two.begun()
            one.process.send_signal(signal.SIGCONT)
            assert "LeaseExpired worker 7 was leased until" in one.ended()
            two.ended()
    check(one, two)


def test_clocks_that_differ(server: Server, own_layout: Layout, tmp_path: Path) -> None:
    """One ahead of the next by half a lease: waiting, not duplicates."""
    holders = []
    for skew in (300, -150, 200, 0):
        with Holder(server, own_layout, tmp_path / str(skew), 0.15, skew) as holder:
            holder.ended()
        holders.append(holder)
    check(*holders)


def test_a_server_that_restarts(server: Server, own_layout: Layout, tmp_path: Path) -> None:
    """Down past the lease: the holder stops. Back again: others go on behind it."""
    with Holder(server, own_layout, tmp_path / "one", 30) as one:
        one.begun()
        server.stop()
        try:
            said = one.ended()
        finally:
            server.start()
        assert "LeaseExpired worker 7 was leased until" in said
        assert "its renewal" in said
        with Holder(server, own_layout, tmp_path / "two", 0.2) as two:
            two.ended()
    check(one, two)


def test_a_server_that_is_paused(server: Server, lease: Callable[..., Any], own_layout: Layout) -> None:
    """It neither answers nor refuses: the lease ends, and nobody waits for more than a few seconds."""
    generator = Snowflake.acquire(lease(workers=[5]), own_layout)
    generator.next_id()
    assert server.process
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        time.sleep(1.5 * TTL)
        with pytest.raises(LeaseExpired, match=r"worker 5 was leased until .*; its renewal "):
            generator.next_id()
        started = time.monotonic()
        with suppress(Exception):
            generator.close()
        assert time.monotonic() - started < 20  # PATIENCE_S where the machine is idle
        with pytest.raises(LeaseExpired, match="given back"):
            generator.next_id()
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    again = lease(workers=[5])

    def works() -> bool:  # after some tries, while clients connect again
        with suppress(Exception), Snowflake.acquire(again, own_layout) as generator:
            return generator.next_id() > 0
        return False

    wait_for(works)


@pytest.mark.parametrize("server", ["zookeeper"], indirect=True)
def test_a_late_renewal_while_another_takes_over(
    lease: Callable[..., Any], own_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZooKeeper ended its session: one of the two writes of the worker's end must fail."""
    late, successor = lease(workers=[4]), lease(workers=[4], wait=0.0)
    late.acquire(own_layout)
    late._do("delete", f"{late._node}/owner")
    time.sleep(TTL)
    write = successor._write
    renewed: list[int] = []

    def slow_write(until_ms: int, version: int) -> bool:
        renewed.append(late.renew())
        return bool(write(until_ms, version))

    monkeypatch.setattr(successor, "_write", slow_write)
    with pytest.raises(LeaseError, match="all 1 worker ids are held"):
        successor.acquire(own_layout)
    assert renewed
    assert late._do("exists", f"{late._node}/owner") is None
    late.release(renewed[0])


@pytest.mark.parametrize("server", ["zookeeper"], indirect=True)
def test_an_acquisition_that_is_tried_again(
    lease: Callable[..., Any], own_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZooKeeper made the node, and its answer got lost: the worker is not held until the session ends."""
    made = lease(workers=[4], wait=0.0)
    do = made._do

    def lossy(request: str, *arguments: Any, **options: Any) -> Any:
        answer = do(request, *arguments, **options) if request == "create" else None
        raise TimeoutError(answer)

    with monkeypatch.context() as lossy_now:
        lossy_now.setattr(made, "_do", lossy)
        with pytest.raises(TimeoutError):
            made.acquire(own_layout)
    with pytest.raises(LeaseError, match="all 1 worker ids are held"):
        lease(workers=[4], wait=0.0).acquire(own_layout)
    assert made.acquire(own_layout).worker_id == 4
    made.release(0)


@pytest.mark.parametrize("server", ["etcd"], indirect=True)
def test_a_race_that_was_lost(lease: Callable[..., Any], own_layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd ends a lease of the lost try while the loser waits."""
    winner, loser = lease(workers=[4]), lease(workers=[4], wait=30.0)
    call = loser._call

    def slow_call(method: str, **request: Any) -> Any:
        if method == "kv/txn":
            monkeypatch.setattr(loser, "_call", call)
            winner.acquire(own_layout)  # for the 2 s that etcd grants at least
        return call(method, **request)

    monkeypatch.setattr(loser, "_call", slow_call)
    assert loser.acquire(own_layout).worker_id == 4
    loser.release(0)


def test_one_lease_for_each_generator(lease: Callable[..., Any], own_layout: Layout) -> None:
    made = lease()
    with (
        Snowflake.acquire(made, own_layout) as generator,
        pytest.raises(LeaseError, match="already holds worker 0; expected one for each generator"),
    ):
        Snowflake.acquire(made, own_layout)
    with pytest.raises(LeaseExpired):
        generator.next_id()
    with pytest.raises(ValueError, match=r"ttl = 0; expected ttl >= 0\.05"):
        type(made)(None, ttl=0)


@pytest.mark.parametrize("server", ["redis"], indirect=True)
def test_redis_that_lost_its_data(server: Server, lease: Callable[..., Any], own_layout: Layout) -> None:
    import redis

    client = redis.Redis(port=server.port, socket_timeout=10)
    with Snowflake.acquire(lease(workers=[3]), own_layout, reacquire=False) as generator:
        last = generator.next_id()
        client.flushall()
        with pytest.raises(LeaseError, match="all 1 worker ids are held"):
            Snowflake.acquire(lease(workers=[3], wait=0.1), own_layout)
        time.sleep(TTL)
        with pytest.raises(LeaseExpired, match="worker 3 is no longer held by this lease"):
            generator.next_id()
    with Snowflake.acquire(lease(workers=[3]), own_layout) as generator:
        assert generator.next_id() > last
    with pytest.raises(ConnectionError, match="0 replicas of Redis confirmed; replicas = 1"):
        Snowflake.acquire(lease(replicas=1), own_layout)
