"""Worker ids of this host's lock files: the default lease."""

import fcntl
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ids_testing import FakeClock, Forked, Generator, Program, Table, wait_for

from senet_fast.ids import Grant, Layout, LeaseError, LeaseExpired, Snowflake
from senet_fast.ids.leases import LockFile, _host, lock_file
from senet_fast.ids.leases._host import Mount
from senet_fast.ids.leases._store import layout_name


def test_lock_files(own_layout: Layout, tmp_path: Path) -> None:
    """Each process has a worker of its own; a killed one's is free at once, and goes on behind its last ID."""
    program = f"""
import sys
from senet_fast.ids import Layout, Snowflake
from senet_fast.ids.leases import LockFile
generator = Snowflake.acquire(LockFile({str(tmp_path)!r}), {own_layout!r})
print(generator.worker_id, generator.next_id(), flush=True)
sys.stdin.read()
"""
    take = lambda workers=None: Snowflake.acquire(LockFile(tmp_path, workers=workers), own_layout)  # noqa: E731
    with Program(program) as one, Program(program) as killed, Program(program) as three:
        said = [[int(word) for word in holder.line().split()] for holder in (one, killed, three)]
        assert sorted(worker for worker, _ in said) == [0, 1, 2]
        killed.kill()
        with take() as generator, take() as other:
            assert generator.worker_id == said[1][0]
            assert generator.next_id() > said[1][1]
            assert other.worker_id == 3
            with pytest.raises(LeaseError, match="2 of 2 worker ids are held"):
                take([3, said[0][0]])
        one.ended()
        three.ended()
    last = []
    for _ in range(3):  # again and again in one process
        with take([3]) as generator:
            last.append(generator.next_id())
        with pytest.raises(LeaseExpired):
            generator.next_id()
    assert last == sorted(set(last))


def test_the_default_is_a_lock_file(
    generator_class: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path))
    layout = Layout(worker=3, timestamp=30, sequence=8, epoch_ms=1_700_000_000_000, tick_ms=100)
    with generator_class.acquire(layout=layout, timeout=3.0) as generator:
        assert generator.decode(generator.next_id()).worker_id == generator.worker_id == 0
        assert [path.name for path in tmp_path.iterdir()] == ["worker3-timestamp30-sequence8-1700000000000-tick100"]
        assert next(tmp_path.iterdir()).stat().st_mode & 0o7777 == 0o700


def test_forked_children_of_a_lock_file_share_it(own_layout: Layout, tmp_path: Path) -> None:
    generator = Snowflake.acquire(LockFile(tmp_path), own_layout)
    drawn = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)
    reader, writer = os.pipe()

    def draw() -> None:
        drawn[0] = generator.next_id()
        os.read(reader, 1)

    child = Forked(draw)
    wait_for(lambda: drawn[0])
    assert generator.next_id() > drawn[0]
    generator.close()
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        assert generator.worker_id == 0
    os.write(writer, b"x")
    assert child.raised() is None


def test_a_worker_whose_last_id_lies_in_the_future_is_passed_over(own_layout: Layout, tmp_path: Path) -> None:
    ahead = FakeClock(time.time_ns() // 1_000_000 + 3_600_000)
    with Snowflake.acquire(LockFile(tmp_path), own_layout, clock=ahead) as generator:
        assert generator.worker_id == 0
        assert generator.try_next() is None  # the file is new: whoever held one that was deleted has not looked yet
        ahead.now_ms += 101
        generator.next_id()
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        assert generator.worker_id == 1
    with pytest.raises(LeaseError, match="0 of 1 worker ids are held, and the last ID of 1 lies ahead of the clock"):
        LockFile(tmp_path, workers=[0]).acquire(own_layout)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is not the last ID of a generator"),
        (lambda path: path.write_bytes(b""), None),  # as new
        (lambda path: path.write_bytes(path.read_bytes().replace(b"worker_id=0", b"worker_id=7")), "says 'worker_id=7"),
        (lambda path: path.write_bytes(path.read_bytes()[:256] + bytes(3840)), "is damaged: 0x0 is no last ID"),
        (lambda path: path.write_bytes(path.read_bytes()[:256] + b"\xff" * 3840), "is damaged: 0xffffffffffffffff"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "0 is a FIFO"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "0 is a symbolic link"),
        (lambda path: (path.unlink(), path.mkdir()), "0 is a folder"),
        (lambda path: path.chmod(0o666), r"0 may be written by others \(mode 0666\)"),
        (lambda path: os.link(path, f"{path}.other"), "0 has 2 names"),
    ],
)
def test_what_is_no_lock_file_is_passed_over(
    spoil: Callable[[Path], object],
    why: str | None,
    own_layout: Layout,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Snowflake.acquire(LockFile(tmp_path), own_layout):
        (path,) = (next(tmp_path.iterdir())).iterdir()
    spoil(path)
    before = len(os.listdir("/proc/self/fd"))
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        assert generator.worker_id == (0 if why is None else 1)
    assert len(os.listdir("/proc/self/fd")) == before
    if why is not None:
        assert re.search(f"passed over .*{why}", caplog.text)
        with pytest.raises(LeaseError, match=f"0 of 1 worker ids are held, and passed over .*{why}"):
            LockFile(tmp_path, workers=[0]).acquire(own_layout)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_file_without_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers is empty; expected worker ids, or None"):
        LockFile(tmp_path, workers=iter([]))


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o1777, "so everybody may write to it; expected 0700, or 2770"),
        (0o770, r"mode 0770; expected 0700, or 2770 \(with setgid\)"),
    ],
)
def test_folders_that_others_may_write_to(mode: int, says: str, own_layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(LeaseError, match=says):
        LockFile(folder).acquire(own_layout)
    folder.chmod(0o700)
    with Snowflake.acquire(LockFile(folder), own_layout):
        below = next(folder.iterdir())
    below.chmod(mode)
    with pytest.raises(LeaseError, match=f"{below} belongs to .*{says}"):
        LockFile(folder).acquire(own_layout)


def test_folders_that_are_none(own_layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name, says in (("link", "is a symbolic link; expected a folder"), ("file", "is a file; expected a folder")):
        with pytest.raises(LeaseError, match=f"{tmp_path / name} {says}"):
            LockFile(tmp_path / name).acquire(own_layout)
    (tmp_path / "leases").mkdir(mode=0o700)
    (tmp_path / "leases" / layout_name(own_layout)).symlink_to("/etc")
    with pytest.raises(LeaseError, match="is a symbolic link; expected a folder"):
        LockFile(tmp_path / "leases").acquire(own_layout)


def test_where_nothing_can_be_written(own_layout: Layout) -> None:
    for path in ("/dev/null/nowhere", "/proc/nowhere"):
        with pytest.raises(LeaseError, match=f"the folder of the lock files, {path}: .*SENET_FAST_LEASES.*--worker-id"):
            LockFile(path).acquire(own_layout)


def test_the_variable(own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SENET_FAST_LEASES", "~/a/b/../leases")
    with Snowflake.acquire(layout=own_layout):
        assert (tmp_path / "a" / "leases" / layout_name(own_layout) / "0").exists()
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "leases")} == {0o700}
    monkeypatch.setenv("SENET_FAST_LEASES", "leases")
    with pytest.raises(LeaseError, match="SENET_FAST_LEASES is 'leases'; expected an absolute path"):
        Snowflake.acquire(layout=own_layout)
    monkeypatch.chdir(tmp_path)
    with Snowflake.acquire(LockFile("here"), own_layout):  # an argument is resolved where it is given
        assert (tmp_path / "here").exists()


@pytest.mark.parametrize("deleted", ["file", "folder", "all", "exchanged"])
def test_a_deleted_file_is_noticed_before_an_id_repeats(
    generator_class: Generator, deleted: str, own_layout: Layout, tmp_path: Path
) -> None:
    """As a cleaner does that minds no locks."""
    folder = tmp_path / "leases"
    raising = generator_class.acquire(LockFile(folder, workers=[0]), own_layout, reacquire=False)
    going_on = generator_class.acquire(LockFile(folder, workers=[1, 3]), own_layout)
    before = [going_on.next_id() for _ in range(5)]
    if deleted == "exchanged":
        for path in (folder / layout_name(own_layout)).iterdir():
            path.rename(f"{path}.away")
    else:
        names = {"file": [f"{layout_name(own_layout)}/{n}" for n in (0, 1)], "folder": [layout_name(own_layout)]}
        for name in names.get(deleted, ["."]):
            path = folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path)
    program = f"""
import sys
from senet_fast.ids import Layout, Snowflake
from senet_fast.ids.leases import LockFile
generators = [Snowflake.acquire(LockFile({str(folder)!r}, workers=[n]), {own_layout!r}) for n in (0, 1)]
print("acquired", flush=True)
print(*[next(g) for g in generators for _ in range(2000)], flush=True)
"""
    with Program(program) as other:
        mine: list[int] = []
        with pytest.raises(LeaseExpired, match="was deleted or exchanged while it was held"):
            mine.extend(raising)
        assert other.line() == "acquired"  # else the one that goes on may have been first to worker 1
        wait_for(lambda: before.append(going_on.next_id()) or (going_on.lease and going_on.lease.losses))
        theirs = [int(word) for word in other.line().split()]
    assert len({*mine, *before, *theirs}) == len(mine) + len(before) + len(theirs)
    assert before == sorted(before)
    status = going_on.lease
    assert status is not None
    assert (status.state, status.losses, status.last_error) == ("held", 1, None)
    assert status.worker_id == going_on.worker_id == going_on.decode(before[-1]).worker_id
    going_on.close()


def test_cleaners_that_mind_locks(own_layout: Layout, tmp_path: Path) -> None:
    """systemd-tmpfiles asks for the lock of each folder; both are held."""
    folder = tmp_path / "leases"
    with Snowflake.acquire(LockFile(folder), own_layout):
        for path in (folder, folder / layout_name(own_layout)):
            fd = os.open(path, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)


def test_a_container_or_private_folder_is_refused(
    own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENET_FAST_LEASES", raising=False)
    monkeypatch.setattr(lock_file._host, "why_private", lambda path: "this is a container (it says so)")
    with pytest.raises(
        LeaseError, match=r"is not the same for all processes of this host: this is a container \(it sa"
    ):
        Snowflake.acquire(layout=own_layout)
    for named in (LockFile(tmp_path), LockFile.of(0, together=False)):
        with Snowflake.acquire(named, own_layout):
            pass


def test_what_says_that_a_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = [Mount("8:1", "/", "/", "ext4"), Mount("0:5", "/", "/dev", "devtmpfs")]
    private = [*host, Mount("8:1", "/var/tmp/systemd-private-1/tmp", "/var/tmp", "ext4")]
    container = [Mount("0:9", "/", "/", "overlay")]

    def why(mine: list[Mount], first: list[Mount], **environ: str) -> str | None:
        monkeypatch.setattr(_host, "mounts", lambda process: mine if process == "self" else first)
        return _host.why_private("/var/tmp/x", environ, str(tmp_path))

    assert why(host, host) is None
    assert why(private, private) is None  # a file system of its own, for everybody
    assert why(host, []) is None
    assert why(private, host) == "/var/tmp is a mount of this service's own (PrivateTmp, or another mount namespace)"
    assert why(container, container) == "this is a container (its root is an overlay)"
    assert why(host, host, KUBERNETES_SERVICE_HOST="10.0.0.1") == "this is a container (KUBERNETES_SERVICE_HOST is set)"
    (tmp_path / ".dockerenv").touch()
    assert why(host, host) == f"this is a container ({tmp_path}/.dockerenv exists)"
    monkeypatch.undo()
    assert _host.covering("/proc/self/x", _host.mounts("self")).kind == "proc"  # type: ignore[union-attr]


def test_what_was_closed_takes_no_room(generator_class: Generator, own_layout: Layout, tmp_path: Path) -> None:
    def room() -> tuple[int, int]:
        return len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))

    taken = []
    for _ in range(40):
        with generator_class.acquire(LockFile(tmp_path), own_layout) as generator:
            generator.next_id()
        with generator_class.acquire(Table(Grant(1)), own_layout) as generator:
            generator.next_id()
        del generator
        taken.append(room())
    assert taken[-1][0] <= taken[3][0] + 8  # the interpreter's own
    assert taken[-1][1] == taken[3][1]


def test_one_lock_file_holds_one_worker(own_layout: Layout, tmp_path: Path) -> None:
    lease = LockFile(tmp_path)
    with (
        Snowflake.acquire(lease, own_layout),
        pytest.raises(LeaseError, match="already holds a worker id; expected one LockFile for each"),
    ):
        Snowflake.acquire(lease)
