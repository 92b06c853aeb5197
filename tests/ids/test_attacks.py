"""What other users of the host can do to the lock files, tried as another user in a mount namespace of its own."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ids_testing import LIMIT_S, FakeClock

from senet_fast.ids import Layout, LeaseError, LeaseExpired, PythonSnowflake, Snowflake
from senet_fast.ids.leases import LockFile, _host
from senet_fast.ids.leases._store import layout_name

MALLORY, BOB, GROUP = 65534, 54321, 54322
DEFAULT = Path("/var/tmp/senet_fast_ids-0")
VICTIM = Path("/var/tmp/victim")

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A forked child that runs `call` as another user; join() raises what it raised."""

    def __init__(self, call: Callable[[], object], uid: int = 0, gid: int = 0) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            signal.alarm(LIMIT_S)
            said: Any = None
            try:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                said = call()
                os.write(writer, pickle.dumps((True, said)))
            except BaseException:
                os.write(writer, pickle.dumps((False, traceback.format_exc())))
            os._exit(0)
        os.close(writer)

    def join(self) -> Any:
        with open(self._reader, "rb") as stream:
            if not select.select([stream], [], [], LIMIT_S + 5)[0]:
                os.kill(self.pid, signal.SIGKILL)
            said = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert said, f"the child ended with {code}"
        done, value = pickle.loads(said)
        assert done, value
        return value

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def _own_namespace() -> None:
    """A /var/tmp of its own, empty, for this process and its children."""
    for done in (
        _libc.unshare(_CLONE_NEWNS),
        _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        _libc.mount(b"tmpfs", b"/var/tmp", b"tmpfs", 0, b"mode=1777"),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), "a mount namespace")


def _can_attack() -> bool:
    if os.geteuid() != 0:
        return False
    try:
        Child(_own_namespace).join()
    except AssertionError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _can_attack(), reason="needs root and mount namespaces, to be two users")


@pytest.fixture(autouse=True)
def a_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host, where /var/tmp is everybody's."""
    monkeypatch.setattr(_host, "why_private", lambda path: None)
    monkeypatch.delenv("SENET_FAST_LEASES", raising=False)


def isolated(call: Callable[[], object]) -> None:
    def run() -> None:
        _own_namespace()
        VICTIM.mkdir(mode=0o755)
        call()
        assert stat.S_IMODE(VICTIM.stat().st_mode) == 0o755
        assert list(VICTIM.iterdir()) == []

    Child(run).join()


@contextmanager
def attacking(step: Callable[[int], object], uid: int = MALLORY, gid: int = MALLORY) -> Iterator[None]:
    """Runs `step` again and again meanwhile, whatever it raises."""

    def run() -> None:
        for number in count():
            with suppress(OSError):
                step(number)

    signal_was = signal.alarm(0)
    attacker = Child(run, uid, gid)
    try:
        yield
    finally:
        attacker.kill()
        signal.alarm(signal_was)


def own_folder(path: Path) -> None:
    path.mkdir()


PREPARED: dict[str, Callable[[Path], object]] = {
    "folder": own_folder,
    "open folder": lambda path: (path.mkdir(), path.chmod(0o777)),
    "link": lambda path: path.symlink_to(VICTIM),
    "dangling link": lambda path: path.symlink_to(VICTIM / "new"),
    "file": lambda path: path.touch(),
    "fifo": lambda path: os.mkfifo(path, 0o666),
}


@pytest.mark.parametrize("how", PREPARED)
def test_a_folder_that_another_user_has_prepared(how: str, own_layout: Layout) -> None:
    def attack() -> None:
        Child(lambda: PREPARED[how](DEFAULT), MALLORY, MALLORY).join()
        before = os.lstat(DEFAULT)
        with pytest.raises(LeaseError, match=f"{DEFAULT} (is a|belongs to)"):
            Snowflake.acquire(layout=own_layout)
        after = os.lstat(DEFAULT)
        assert (before.st_mode, before.st_uid, before.st_ino) == (after.st_mode, after.st_uid, after.st_ino)

    isolated(attack)


def test_folders_exchanged_while_they_are_opened(own_layout: Layout) -> None:
    """200 races: root either gets its own folder, or an error, and nothing is made or changed elsewhere."""

    def exchange(number: int) -> None:
        PREPARED[list(PREPARED)[number % len(PREPARED)]](DEFAULT)
        if DEFAULT.is_dir() and not DEFAULT.is_symlink():
            (DEFAULT / layout_name(own_layout)).symlink_to(VICTIM)
            (DEFAULT / layout_name(own_layout)).unlink()
            DEFAULT.rmdir()
        else:
            DEFAULT.unlink()

    def attack() -> None:
        ids: list[int] = []
        refused = 0
        with attacking(exchange):
            for _ in range(200):
                try:
                    with Snowflake.acquire(layout=own_layout) as generator:
                        status = DEFAULT.lstat()
                        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
                        ids.append(generator.next_id())
                except LeaseError:
                    refused += 1
                else:
                    shutil.rmtree(DEFAULT)
        assert len(ids) + refused == 200
        assert len(set(ids)) == len(ids)
        assert refused

    isolated(attack)


def test_a_way_through_another_users_folder(own_layout: Layout) -> None:
    """Root named a folder there; its owner exchanges it for links to where root may write."""
    lair = Path("/var/tmp/mallory")

    def exchange(number: int) -> None:
        if number % 2:
            lair.mkdir()
            (lair / "ids").symlink_to(VICTIM)
            (lair / "ids").unlink()
            lair.rmdir()
        else:
            lair.symlink_to(VICTIM)
            lair.unlink()

    def attack() -> None:
        Child(lair.mkdir, MALLORY, MALLORY).join()
        with pytest.raises(LeaseError, match=f"lies in {lair}, and .*could exchange it; root needs another"):
            LockFile(lair / "ids").acquire(own_layout)
        Child(lair.rmdir, MALLORY, MALLORY).join()
        with attacking(exchange):
            for _ in range(200):
                with suppress(LeaseError):
                    lease = LockFile(lair / "ids")
                    lease.acquire(own_layout)
                    lease.release(0)
                with suppress(OSError):
                    if lair.lstat().st_uid == 0:
                        shutil.rmtree(lair)  # root was first, and made all of it

    isolated(attack)


def test_nobody_else_comes_in(own_layout: Layout) -> None:
    def attack() -> None:
        with Snowflake.acquire(layout=own_layout) as generator:
            before = [generator.next_id() for _ in range(100)]

            def spoil() -> int:
                denied = 0
                word = DEFAULT / layout_name(own_layout) / "0"
                for attempt in (
                    lambda: os.open(DEFAULT, os.O_RDONLY),
                    lambda: os.open(word, os.O_RDONLY),
                    lambda: os.truncate(word, 0),
                    lambda: word.unlink(),
                    lambda: (DEFAULT / "x").touch(),
                    lambda: DEFAULT.rename("/var/tmp/x"),
                    lambda: os.link(word, "/var/tmp/x"),
                ):
                    try:
                        attempt()
                    except PermissionError:
                        denied += 1
                return denied

            assert Child(spoil, MALLORY, MALLORY).join() == 7
            time.sleep(0.2)
            assert generator.next_id() > before[-1]
            for path in (DEFAULT, DEFAULT / layout_name(own_layout)):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert stat.S_IMODE((DEFAULT / layout_name(own_layout) / "0").stat().st_mode) == 0o600

    isolated(attack)


def shared_folder(name: str = "shared") -> Path:
    folder = Path("/var/tmp", name)
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2770)
    return folder


def drawn(generator: Any, n: int) -> list[int]:
    return [generator.next_id() for _ in range(n)]


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


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles")
def test_systemd_tmpfiles_leaves_what_is_held(own_layout: Layout) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch, "rules.conf")

        def attack() -> None:
            folder = Path("/var/tmp/aged")
            rules.write_text(f"d {folder} 0755 root root 1s\n")
            folder.mkdir()
            with Snowflake.acquire(LockFile(folder / "leases"), own_layout) as generator:
                generator.next_id()
                clean(folder)
                assert (folder / "leases" / layout_name(own_layout) / "0").exists()
                assert generator.next_id()
            clean(folder)
            assert list(folder.iterdir()) == []

        def clean(folder: Path) -> None:
            for path in [*folder.rglob("*"), folder]:
                os.utime(path, (1, 1))
            time.sleep(2.1)  # the time of their last change cannot be set back
            subprocess.run(["systemd-tmpfiles", "--clean", str(rules)], check=True, capture_output=True)

        isolated(attack)


def test_a_var_tmp_of_its_own_is_noticed() -> None:
    """Of two services with PrivateTmp each would be worker 0."""

    def attack() -> None:
        why = _why_private("/var/tmp/x", {}, "/nonexistent")
        assert why in (
            "/var/tmp is a mount of this service's own (PrivateTmp, or another mount namespace)",
            "this is a container (its root is an overlay)",
        )

    isolated(attack)


_why_private = _host.why_private


def test_the_clock_of_these_tests(own_layout: Layout) -> None:
    """A group's mark is in this host's time: a generator whose clock is ahead of it is refused."""

    def attack() -> None:
        folder = shared_folder()
        ahead = FakeClock(time.time_ns() // 1_000_000 + 3_600_000)
        with pytest.raises(LeaseError, match="this host's clock already reads"):
            Snowflake.acquire(LockFile(folder), own_layout, clock=ahead)

    isolated(attack)
