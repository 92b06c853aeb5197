"""What stands in for Linux's own calls on other systems (senet_fast/ids/_system.py), on Linux with those taken away."""

import errno
import fcntl
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from ids_testing import LIMIT_S, FakeClock, Generator, Program, in_child, run_program

from senet_fast.ids import Layout, LeaseError, PythonSnowflake, Snowflake, _system, _wordfile
from senet_fast.ids.leases import Environment, LockFile, _admin, _folder, _host

ELSEWHERE = "from senet_fast.ids import _system\n_system.LINUX = False\n"
"""In front of programs, which are other processes."""

pytestmark = pytest.mark.usefixtures("no_linux")


@pytest.fixture
def no_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_system, "LINUX", False)
    monkeypatch.setattr(_system, "_sysctl", lambda name: f"test-of-{name}")


# Prints the worker that it got, draws IDs when told to, and ends when told to.
HOLDER = (
    ELSEWHERE
    + """
import os, sys
from senet_fast.ids import Layout, Snowflake
from senet_fast.ids.leases import LockFile
layout = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=int(sys.argv[2]))
generator = Snowflake.acquire(LockFile(sys.argv[1]), layout)
print(generator.worker_id, generator.next_id(), flush=True)
if sys.argv[3] == "child":
    if os.fork():
        os._exit(0)  # as killed: nothing is given back
    print(generator.next_id(), flush=True)
sys.stdin.readline()
if sys.argv[3] == "child":
    print(generator.next_id(), flush=True)
    os._exit(0)
"""
)


def test_no_two_processes_or_generators_have_one_worker(own_layout: Layout, tmp_path: Path) -> None:
    arguments = str(tmp_path), own_layout.epoch_ms
    mine = [Snowflake.acquire(LockFile(tmp_path), own_layout) for _ in range(3)]
    with Program(HOLDER, *arguments, "alone") as one, Program(HOLDER, *arguments, "alone") as two:
        workers = [int(program.line().split()[0]) for program in (one, two)]
        assert sorted([*workers, *(generator.worker_id for generator in mine)]) == [0, 1, 2, 3, 4]
        mine[1].close()
        with Snowflake.acquire(LockFile(tmp_path), own_layout) as next_one:
            assert next_one.worker_id == 1
        one.go()
        one.ended()
        with Snowflake.acquire(LockFile(tmp_path), own_layout) as next_one:  # mine[1]'s again
            assert next_one.worker_id == 1
            with Snowflake.acquire(LockFile(tmp_path), own_layout) as another:
                assert another.worker_id == workers[0]
    for generator in mine:
        generator.close()


def test_a_forked_child_goes_on_holding_the_worker(own_layout: Layout, tmp_path: Path) -> None:
    with Program(HOLDER, tmp_path, own_layout.epoch_ms, "child") as parent:
        worker, first = map(int, parent.line().split())
        second = int(parent.line())
        parent.process.wait(LIMIT_S)
        assert worker == 0
        with Snowflake.acquire(LockFile(tmp_path), own_layout) as mine:
            assert mine.worker_id == 1
        parent.go()
        third = int(parent.line())
        assert first < second < third


def test_a_closed_generator_leaves_its_file_to_others(own_layout: Layout, tmp_path: Path) -> None:
    one = Snowflake.acquire(LockFile(tmp_path), own_layout)
    last = one.next_id()
    one.close()
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as two:
        assert two.worker_id == one.worker_id
        assert two.next_id() > last
        assert in_child(two.next_id) is None


FILES = (
    ELSEWHERE
    + """
import sys
import numpy as np
from senet_fast.ids import Snowflake
generator = Snowflake(3, file=sys.argv[1])
np.save(sys.argv[2], np.concatenate([generator.next_ids(500) for _ in range(20)]))
"""
)


def test_processes_that_name_one_file(tmp_path: Path) -> None:
    arrays = [tmp_path / f"{i}.npy" for i in range(3)]
    with Program(FILES, tmp_path / "last", arrays[0]) as one, Program(FILES, tmp_path / "last", arrays[1]) as two:
        run_program(FILES, tmp_path / "last", arrays[2])
        one.ended()
        two.ended()
    assert np.unique(np.concatenate([np.load(path) for path in arrays])).size == 30_000


def test_children_that_share_a_state(generator_class: Generator, worker_id: int, tmp_path: Path) -> None:
    """The twin's claims by POSIX locks, which are each process's own."""
    generator = generator_class(worker_id, on_fork="share")
    generator.next_id()
    children = []
    for i in range(3):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                np.save(tmp_path / f"{i}.npy", [generator.next_id() for _ in range(3000)])
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    mine = [generator.next_id() for _ in range(3000)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    together = np.concatenate([mine, *(np.load(tmp_path / f"{i}.npy") for i in range(3))])
    assert np.unique(together).size == 12_000


def test_posix_locks_are_those_of_a_process(tmp_path: Path) -> None:
    """What the test above rests on: the other process's lock is seen, and a child's descriptors end only its own."""
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    _system.lock_claims(file, fcntl.F_WRLCK, 4096)
    assert in_child(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4096)) is BlockingIOError
    assert in_child(lambda: os.close(file)) is None
    assert in_child(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4096)) is BlockingIOError
    _system.lock_claims(file, fcntl.F_UNLCK, 4096)
    assert in_child(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4096)) is None
    os.close(file)


def test_what_would_not_be_safe_is_refused(own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path))
    shared = Environment(shared=True, environ={"RANK": "3"})
    with pytest.raises(LeaseError, match=r"shared=True\) needs the locks of Linux"):
        Snowflake.acquire(shared, own_layout)
    with Snowflake.acquire(Environment(environ={"RANK": "3"}), own_layout) as alone:
        assert alone.worker_id == 3
    with pytest.raises(LeaseError, match=r"PythonSnowflake with a file .* needs the locks of Linux"):
        PythonSnowflake(3, own_layout, file=tmp_path / "last")
    assert not (tmp_path / "last").exists()
    with pytest.raises(LeaseError, match="PythonSnowflake"):
        PythonSnowflake.acquire(LockFile(tmp_path), own_layout)
    with Snowflake.acquire(LockFile(tmp_path, workers=[0]), own_layout) as free:  # the twin gave it back
        assert free.worker_id == 0


def test_restarts_are_told_apart(own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was borrowed from the future may be missing in a file of another run of the kernel."""
    layouts = (Layout(timestamp=41, worker=10, sequence=12, epoch_ms=own_layout.epoch_ms + 10**6 + i) for i in range(9))
    boots = itertools.count()
    for says, ahead_ms in ((None, 5000), ("the-same", 0)):
        layout, path = next(layouts), tmp_path / f"{says}"
        monkeypatch.setattr(_system, "_sysctl", lambda name, says=says: says or f"boot-{next(boots)}")
        Snowflake(1, layout, file=path, max_drift_ms=5000, clock=FakeClock(1_700_000_000_000)).next_id()
        fd = _wordfile.open_file(path)
        before = _wordfile.read(fd, path)
        _wordfile.prepare(fd, path, "Snowflake", layout, 1, 0)
        after = _wordfile.read(fd, path)
        os.close(fd)
        assert before
        assert after
        assert (after.word > before.word) == (ahead_ms > 0)
    monkeypatch.setattr(_system, "_sysctl", lambda name: None)
    with pytest.raises(LeaseError, match="does not say when it was started"):
        Snowflake(1, next(layouts), file=tmp_path / "x", max_drift_ms=5)
    with pytest.raises(LeaseError, match="does not say when it was started"):  # nor where an earlier holder borrowed
        Snowflake(1, layout, file=path)
    assert Snowflake(1, next(layouts), file=tmp_path / "y").next_id()


def test_the_name_of_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if _system.LINUX:
        assert _system.boot() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert _system._sysctl("kern.bootsessionuuid") is None
    monkeypatch.setattr(_system, "LINUX", False)
    monkeypatch.setattr(_system, "_sysctl", {"kern.bootsessionuuid": "E0"}.get)
    assert _system.boot() == "E0"
    monkeypatch.setattr(_system, "_sysctl", {}.get)
    assert _system.boot() == _system.UNKNOWN_BOOT


def test_folders_are_walked_and_links_followed(own_layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "to").symlink_to("there")
    with Snowflake.acquire(LockFile(tmp_path / "to" / "locks"), own_layout) as generator:
        assert generator.worker_id == 0
    top = _folder.open_top(str(tmp_path / "to" / "locks"))
    assert top.path == str(tmp_path / "there" / "locks")
    os.close(top.fd)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LeaseError, match="more than 40 symbolic links"):
        _folder.open_top(str(tmp_path / "loop" / "x"))


def test_a_link_that_is_exchanged_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose it is is asked before and after: one that is root's at both times, in a folder of root's, was root's."""
    (tmp_path / "link").symlink_to("mine")
    folder = os.open(tmp_path, os.O_RDONLY)
    seen: list[int] = []
    assert _system.link("link", folder, lambda status: seen.append(status.st_uid)) == "mine"
    assert seen == [os.geteuid()] * 2
    assert _system.link("none", folder, seen.append) is None
    (tmp_path / "file").touch()
    assert _system.link("file", folder, seen.append) is None
    os.close(folder)


def test_who_holds_what_is_not_told(own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        generator.next_id()
        (file,) = _admin.files(str(tmp_path))
        assert (file.state, file.holders.held) == ("?", None)
        with pytest.raises(LeaseError, match="worker 0 is held by a process that cannot be seen"):
            _admin.free(str(tmp_path), own_layout, 0, force=True, say=print)
    assert _host.mounts("self") == []
    assert _host.why_private("/var/tmp", {}, str(tmp_path)) is None
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    (file,) = _admin.files(str(tmp_path))
    assert file.why_not == os.strerror(errno.EACCES)
