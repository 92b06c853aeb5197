"""What the members of a group that shares a folder of lock files can do to each other."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attacking import BOB, GROUP, MALLORY, VICTIM, Child, drawn, isolated, needs_users, shared_folder
from ids_testing import FakeClock

from senet_fast.ids import Layout, LeaseError, LeaseExpired, PythonSnowflake, Snowflake
from senet_fast.ids.leases import LockFile
from senet_fast.ids.leases._store import layout_name

pytestmark = [needs_users, pytest.mark.usefixtures("a_shared_folder")]


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_a_group_shares_worker_ids(umask: int, own_layout: Layout) -> None:
    def attack() -> None:
        folder = shared_folder()
        os.umask(umask)

        def member() -> tuple[int, list[int]]:
            with Snowflake.acquire(LockFile(folder), own_layout) as generator:
                return generator.worker_id, drawn(generator, 1000)

        with Snowflake.acquire(LockFile(folder), own_layout) as generator:
            mine = drawn(generator, 1000)
            worker_id, theirs = Child(member, BOB, GROUP).join()
            assert (generator.worker_id, worker_id) == (0, 1)
        worker_id, again = Child(member, BOB, GROUP).join()  # what root held is free for the group
        assert worker_id == 0
        assert len({*mine, *theirs, *again}) == 3000
        assert min(again) > max(mine)
        for path in folder.rglob("*"):
            status = path.stat()
            assert status.st_gid == GROUP
            assert stat.S_IMODE(status.st_mode) == (0o2770 if path.is_dir() else 0o660)
        with pytest.raises(AssertionError, match=r"LeaseError: .*/shared: Permission denied"):
            Child(member, MALLORY, MALLORY).join()

    isolated(attack)


@pytest.mark.slow
def test_what_a_member_of_the_group_can_spoil(own_layout: Layout) -> None:
    """Availability, but no process ends by SIGBUS, no ID repeats, and root writes nowhere else."""
    spoilers: list[Callable[[Path], object]] = [
        lambda word: os.truncate(word, 0),
        lambda word: os.truncate(word, 200),
        lambda word: word.unlink(),
        lambda word: word.rename(f"{word}.away"),
        lambda word: (word.unlink(), word.symlink_to(VICTIM / "new")),
        lambda word: (word.unlink(), os.mkfifo(word, 0o660)),
        lambda word: word.parent.rename(f"{word.parent}.away"),
        lambda word: word.write_bytes(word.read_bytes()[:256] + b"\3" + bytes(7) + word.read_bytes()[264:]),
    ]

    def attack() -> None:
        drawing: list[tuple[list[Any], list[int], Child]] = []
        for number, spoil in enumerate(spoilers):
            folder = shared_folder(f"{number}")
            generator_class = (Snowflake, PythonSnowflake)[number % 2]
            layout = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=own_layout.epoch_ms - number)
            generators = [generator_class.acquire(LockFile(folder, workers=[0, 7]), layout, reacquire=False)]
            if number % 3 == 0:  # each waits a second for a new file
                generators.append(generator_class.acquire(LockFile(folder, workers=[1, 3]), layout))

            def member(spoil: Any = spoil, folder: Path = folder, layout: Layout = layout) -> list[int]:
                for worker_id in (0, 1):
                    with suppress(FileNotFoundError):  # with the folder of the one before
                        spoil(folder / layout_name(layout) / f"{worker_id}")
                with Snowflake.acquire(LockFile(folder, workers=[0, 1, 2]), layout) as generator:
                    return drawn(generator, 2000)

            ids = [number for generator in generators for number in drawn(generator, 500)]
            drawing.append((generators, ids, Child(member, BOB, GROUP)))
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for generators, ids, _ in drawing:
                for generator in generators:
                    with suppress(LeaseExpired):
                        ids += drawn(generator, 5)
        for generators, ids, child in drawing:
            ids += child.join()
            assert len(set(ids)) == len(ids)
            for generator in generators:
                generator.close()

    isolated(attack)


def test_a_member_who_locks_everything(own_layout: Layout) -> None:
    def attack() -> None:
        folder = shared_folder()
        with Snowflake.acquire(LockFile(folder), own_layout):
            pass

        def member() -> None:
            for number in range(1024):
                fd = os.open(folder / layout_name(own_layout) / f"{number}", os.O_RDWR | os.O_CREAT, 0o660)
                fcntl.flock(fd, fcntl.LOCK_EX)
            os.kill(os.getpid(), signal.SIGSTOP)

        holder = Child(member, BOB, GROUP)
        os.waitpid(holder.pid, os.WUNTRACED)
        with pytest.raises(LeaseError, match="1024 of 1024 worker ids are held"):
            Snowflake.acquire(LockFile(folder), own_layout)
        holder.kill()
        with Snowflake.acquire(LockFile(folder), own_layout) as generator:
            assert generator.next_id()

    isolated(attack)


@pytest.mark.slow
def test_a_killed_holder_in_a_group_is_gone_on_behind(own_layout: Layout) -> None:
    def attack() -> None:
        folder = shared_folder()

        def member() -> list[int]:
            generator = Snowflake.acquire(LockFile(folder), own_layout)
            with open(folder / "drawn", "wb") as file:
                file.write(pickle.dumps(drawn(generator, 1000)))
            os.kill(os.getpid(), signal.SIGKILL)
            return []

        killed = Child(member, BOB, GROUP)
        os.waitpid(killed.pid, 0)
        theirs = pickle.loads((folder / "drawn").read_bytes())
        with Snowflake.acquire(LockFile(folder), own_layout) as generator:
            assert generator.worker_id == 0
            assert generator.next_id() > max(theirs)

    isolated(attack)


def test_a_clock_that_is_ahead_of_a_group(own_layout: Layout) -> None:
    """A group's mark is in this host's time: a generator whose clock is ahead of it is refused."""

    def attack() -> None:
        folder = shared_folder()
        ahead = FakeClock(time.time_ns() // 1_000_000 + 3_600_000)
        with pytest.raises(LeaseError, match="this host's clock already reads"):
            Snowflake.acquire(LockFile(folder), own_layout, clock=ahead)

    isolated(attack)
