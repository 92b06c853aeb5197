"""Lock files and Redis that lose what was leased, and are asked again."""

import itertools
import time
from pathlib import Path

import needs
import numpy as np
import pytest
from ids_testing import Generator, in_child, wait_for
from servers import RedisServer, running

from senet_fast.ids import Grant, Layout, LeaseError, LeaseExpired, Snowflake
from senet_fast.ids.leases import LeaseStatus, LockFile, Redis


def status_of(generator: Snowflake) -> LeaseStatus:
    status = generator.lease
    assert status is not None
    return status


def test_a_lock_file_that_is_deleted_before_the_first_claim(
    generator_class: Generator, own_layout: Layout, tmp_path: Path
) -> None:
    class Slow(LockFile):
        def acquire(self, layout: Layout) -> Grant:
            grant = super().acquire(layout)
            for path in tmp_path.glob("*/*"):
                path.unlink()
            return grant

    with pytest.raises(LeaseError, match="was deleted or exchanged while it was held"):
        generator_class.acquire(Slow(tmp_path), own_layout)


def test_two_generators_of_one_folder_that_is_deleted(
    generator_class: Generator, own_layout: Layout, tmp_path: Path
) -> None:
    """The second looks first, and takes the worker id of the first."""
    generators = [generator_class.acquire(LockFile(tmp_path), own_layout) for _ in range(2)]
    ids = [[generator.next_id()] for generator in generators]
    for path in tmp_path.glob("*/*"):
        path.unlink()
    for at in (1, 0, 1, 0):
        wait_for(lambda at=at: ids[at].append(generators[at].next_id()) or status_of(generators[at]).losses)  # type: ignore[misc]
    assert [own_layout.decode(draws[-1]).worker_id for draws in ids] == [1, 0]
    for draws, generator in zip(ids, generators, strict=True):
        assert draws == sorted(draws)
        generator.close()
    assert len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1])


def test_a_child_that_loses_leaves_the_parents_lock(
    generator_class: Generator, own_layout: Layout, tmp_path: Path
) -> None:
    """Such as one that may not see the folder any more."""
    lease = LockFile(tmp_path, workers=[0, 1])
    generator = generator_class.acquire(lease, own_layout)
    before = generator.next_id()

    def child() -> None:
        def renew() -> int:
            lease.renew = LockFile.renew.__get__(lease)  # type: ignore[method-assign]
            raise LeaseError("nothing to be seen")

        lease.renew = renew  # type: ignore[method-assign]
        time.sleep(0.15)
        assert own_layout.decode(generator.next_id()).worker_id == 1
        generator.close()

    assert in_child(child) is None
    with pytest.raises(LeaseError, match="1 of 1 worker ids are held"):
        LockFile(tmp_path, workers=[0]).acquire(own_layout)
    assert generator.next_id() > before
    assert status_of(generator).losses == 0
    generator.close()


def test_redis_that_loses_its_data_in_use(generator_class: Generator, own_layout: Layout, tmp_path: Path) -> None:
    """Its grants are waited for, then the fleet has worker ids again; whoever is in use draws until then."""
    redis = needs.library("redis")
    ttl = 1.0
    with running(RedisServer(tmp_path)) as server:
        client = redis.Redis(port=server.port, socket_timeout=10)
        url = f"redis://127.0.0.1:{server.port}"
        fleet = [generator_class.acquire(Redis(url, ttl=ttl), own_layout) for _ in range(3)]
        drawn: list[list[int]] = [[] for _ in fleet]

        def draw() -> None:
            for generator, ids in zip(fleet, drawn, strict=True):
                try:
                    ids.append(generator.next_id())
                except LeaseExpired:  # between the end of what was granted and the next grant
                    time.sleep(0.001)

        for _ in range(100):
            draw()
        for losses in itertools.count(1):
            client.flushall()
            started = time.monotonic()
            wait_for(
                lambda losses=losses: (
                    draw()
                    or all(  # type: ignore[misc]
                        status_of(generator).losses == losses and status_of(generator).state == "held"
                        for generator in fleet
                    )
                )
            )
            assert time.monotonic() - started < 20 * ttl  # about 2 where the machine is idle
            if losses == 2:
                break
        draw()
        for generator, ids in zip(fleet, drawn, strict=True):
            assert (np.diff(ids) > 0).all()
            assert own_layout.decode(ids[-1]).worker_id == generator.worker_id == status_of(generator).worker_id
            generator.close()
        everything = np.concatenate(drawn)
        assert np.unique(everything).size == everything.size
