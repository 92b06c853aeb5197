"""The commands for administrators: lock files listed and freed."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
from cli_testing import COMMAND, FREE, lock_files, run, seen, written  # noqa: F401 - the fixture is for every test here

from senet_fast.ids import TWITTER, Layout, LeaseError, PythonSnowflake, Snowflake, _system
from senet_fast.ids.layout import DISCORD
from senet_fast.ids.leases import LockFile, _admin, _folder
from senet_fast.ids.leases._store import layout_name

MINE = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1_700_000_000_456)  # TWITTER's workers: other tests
OWN = Layout(timestamp=40, worker=3, sequence=13, epoch_ms=1_700_000_000_123, tick_ms=2)
NOBODY = {"free": "-", "?": "?"}[FREE]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the lock files of MINE."""
    return tmp_path / "leases" / layout_name(MINE)


def rows(*arguments: str) -> list[list[str]]:
    done = run("leases", "list", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t") for line in done.stdout.splitlines()]


def free(worker_id: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("leases", "free", worker_id, "--layout", layout_name(MINE), *arguments)


def used(worker_id: int, layout: Layout = MINE, ahead_ms: int = -1000) -> int:
    """The last ID of a worker that was leased and given back."""
    now_ms = [time.time_ns() // 1_000_000 + ahead_ms]
    with Snowflake.acquire(LockFile(workers=[worker_id]), layout, clock=lambda: now_ms[0]) as generator:
        now_ms[0] += 150  # a new file's first IDs wait for whoever held one that was deleted
        return generator.next_id()


def test_what_is_held_free_and_ahead_is_listed(folder: Path) -> None:
    own, last, ahead = used(5, OWN), used(7), used(1, ahead_ms=3_600_000)
    with Snowflake.acquire(LockFile(workers=[3]), MINE) as generator:
        held = generator.next_id()
        before = seen(folder.parent)
        listed = rows()
        assert seen(folder.parent) == before
        assert rows("--directory", str(folder.parent))[0] == listed[0]
        of_own = rows("--layout", layout_name(OWN))
    early = listed[1].pop(4)
    assert 3_500 < float(early) < 3_601
    assert listed == [
        ["5", FREE, NOBODY, written(own, OWN), of_own[0][4], str(folder.parent / layout_name(OWN) / "5")],
        ["1", "ahead", NOBODY, written(ahead, MINE), str(folder / "1")],
        ["3", "held", str(os.getpid()), written(held, MINE), "-", str(folder / "3")],
        ["7", FREE, NOBODY, written(last, MINE), "-", str(folder / "7")],
    ]
    assert [row[5] for row in of_own] == [listed[0][5]]


def test_the_list_as_json(folder: Path) -> None:
    last = used(7)
    (folder / "8").symlink_to("7")
    done = run("leases", "list", "--json", "--layout", layout_name(MINE))
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {
        "worker_id": 7,
        "state": FREE,
        "held": {"free": False, "?": None}[FREE],
        "pids": [],
        "timestamp": written(last, MINE),
        "timestamp_ms": MINE.decode(last).timestamp_ms,
        "ahead_ms": 0,
        "layout": folder.name,
        "file": str(folder / "7"),
        "why": None,
    }
    run("ids")
    assert json.loads(run("leases", "list", "--json", "--layout", "Twitter").stdout)["layout"] == layout_name(TWITTER)
    assert (second["state"], second["held"], second["why"]) == ("unusable", None, "is a symbolic link")


SPOILS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "is not the last ID of a generator"),
    (lambda path: path.write_bytes(path.read_bytes().replace(b"worker_id=0", b"worker_id=7")), "says 'worker_id=7"),
    (lambda path: path.write_bytes(path.read_bytes()[:256] + bytes(3840)), "is damaged: 0x0 is no last ID"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "is a FIFO"),
    (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "is a symbolic link"),
    (lambda path: path.chmod(0o666), "may be written by others (mode 0666)"),
    (lambda path: os.link(path, path.parent.parent / "other"), "has 2 names"),
]


@pytest.mark.parametrize(("spoil", "why"), SPOILS, ids=[why[:20] for _, why in SPOILS])
def test_what_is_passed_over_is_listed_and_freed(spoil: Callable[[Path], object], why: str, folder: Path) -> None:
    """With the reason that LockFile gives."""
    used(0)
    spoil(folder / "0")
    before = seen(folder.parent)
    (row,) = rows("--layout", layout_name(MINE))
    assert seen(folder.parent) == before
    assert row[:2] == ["0", "unusable"]
    assert why in row[6]
    with pytest.raises(LeaseError, match=re.escape(why)):
        LockFile(workers=[0]).acquire(MINE)
    done = free("0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        f"removing {folder / '0'}: .*{re.escape(why)}.*; its last ID is not known, and .*\n", done.stdout
    )
    assert list(folder.iterdir()) == []
    used(0)
    assert free("0").stdout.startswith(f"nothing to do: {folder / '0'} is in order")


def test_a_last_id_ahead_of_the_clock_needs_force(folder: Path) -> None:
    ahead = used(1, ahead_ms=3_600_000)
    before = seen(folder)
    done = free("1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert (
        f"its IDs up to {written(ahead, MINE)} may repeat. Wait until then, set the clock right, or give" in done.stderr
    )
    assert seen(folder) == before
    done = free("1", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"its IDs up to {written(ahead, MINE)} may repeat\n" in done.stdout
    assert not list(folder.iterdir())


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_held_one_is_refused(spoiled: bool, force: list[str], folder: Path) -> None:
    with Snowflake.acquire(LockFile(workers=[2]), MINE) as generator:
        if spoiled:
            (folder / "2").chmod(0o666)
        before = seen(folder)
        done = free("2", *force)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"leases: worker 2 is held by process {os.getpid()} ({folder / '2'})\n"
        assert seen(folder) == before
        assert generator.next_id()


def test_what_a_forked_child_goes_on_to_hold(folder: Path) -> None:
    code = """
import os, sys
from senet_fast.ids import Snowflake
generator = Snowflake.acquire()
if os.fork():
    os._exit(0)
print(os.getppid(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.wait(60)
        process.stdout.readline()
        (row,) = rows()
        assert row[:3] == ["0", "held" if FREE == "free" else "?", "?"]
        done = run("leases", "free", "0")
        assert done.returncode == 1
        assert "worker 0 is held by a process that cannot be seen from here" in done.stderr


def test_what_lies_around_is_named(folder: Path) -> None:
    used(0)
    strays = {"x\ty": r"x\ty", "01": "01", "1024": "1024", "\udcff": r"\udcff", ".0.removed-1": ".0.removed-1"}
    for name in strays:
        (folder / name).touch()
    (folder / "4").mkdir()
    (folder.parent / "notes").touch()
    (folder.parent / layout_name(OWN)).symlink_to("/etc")
    (folder.parent / layout_name(DISCORD)).mkdir(mode=0o700)
    (folder.parent / layout_name(DISCORD)).chmod(0o777)
    says = {row[5].rpartition("/")[2]: row[6] for row in rows() if len(row) == 7}
    assert {says[shown] for shown in strays.values()} == {"is no worker id of the layout"}
    assert (says["4"], says["notes"]) == ("is a folder", "is not the folder of a layout")
    assert says[layout_name(OWN)].endswith("is a symbolic link; expected a folder")
    assert "so everybody may write to it" in says[layout_name(DISCORD)]
    assert len(says) == 9
    done = free("4")
    assert (done.returncode, done.stderr) == (
        1,
        f"leases: {folder / '4'} cannot be freed (is a folder); see to it by hand\n",
    )


def test_a_folder_that_a_group_shares(tmp_path: Path, folder: Path) -> None:
    folder.parent.mkdir()
    folder.parent.chmod(0o2770)
    with Snowflake.acquire(LockFile(workers=[2]), MINE) as generator:
        listed = (rows() for _ in range(20) if generator.next_id())
        row = next(row for (row,) in listed if row[4] != "-")  # a busy machine may look a second late
        assert row[1:3] == ["held", str(os.getpid())]
        assert 0 < float(row[4]) < 1  # the next second is promised to the holder
        assert free("2").returncode == 1
    assert rows()[0][1:3] == [FREE, NOBODY]
    (folder / "2").chmod(0o666)
    assert rows()[0][6] == "may be written by others (mode 0666)"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_sees_the_folder_of_another_user_as_that_user_does(folder: Path) -> None:
    used(0)
    used(1)
    for path in (folder.parent, folder, folder / "0"):
        os.chown(path, 12345, 12345)
    assert [row[6:] for row in rows()] == [[], ["belongs to root (uid 0)"]]
    assert free("0").stdout.startswith("nothing to do")
    assert free("1").stdout.startswith("removing")
    assert [path.name for path in folder.iterdir()] == ["0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to all files")
@pytest.mark.parametrize("mode", [0o400, 0o200])
def test_a_file_that_may_not_be_used_is_not_freed(mode: int, folder: Path) -> None:
    used(0)
    (folder / "0").chmod(mode)
    assert rows()[0][6] == "Permission denied"
    done = free("0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"leases: {folder / '0'} cannot be freed (Permission denied); see to it by hand\n"


@pytest.mark.parametrize("stdout", [">/dev/full", "| (exec <&-; sleep 1)"])
def test_nothing_is_removed_unless_it_was_said(stdout: str, folder: Path) -> None:
    used(0)
    (folder / "0").chmod(0o666)
    shell = f"set -o pipefail; (sleep 0.3; {shlex.join(COMMAND)} leases free 0 --layout {layout_name(MINE)}) {stdout}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", int(stdout == ">/dev/full"))
    assert (folder / "0").exists()


def test_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "leases"
    for _ in range(2):
        done = free("5")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"nothing to do: there is no {top}/")
    done = run("leases", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"leases: there is no folder {top}: no process has leased a worker id there\n"
    assert not top.exists()
    top.mkdir(mode=0o700)
    assert run("leases", "list").stderr == f"leases: no lock files in {top}\n"
    monkeypatch.setenv("SENET_FAST_LEASES", "here")
    done = run("leases", "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["free", "1024"], 2, "N = 1024; expected"),
        (["free", "x"], 2, "the number is 'x'"),
        (["free", "0", "--layout", "nobody"], 2, "'nobody'; expected one of"),
        (["list", "--layout", "timestamp70-sequence1-0"], 2, "expected one of"),
        (["list", "--directory", "/dev/null"], 1, "/dev/null is a device; expected a folder"),
        (["list", "--directory", "/dev/null/nowhere"], 1, "/dev/null/nowhere: Not a directory"),
        (["free", "0", "--directory", "/dev/null"], 1, "/dev/null is a device; expected a folder"),
        (["list", "--directory", "/tmp"], 1, "so everybody may write to it"),
        ([], 2, "ACTION"),
    ],
)
def test_bad_arguments(arguments: list[str], code: int, named: str) -> None:
    done = run("leases", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_listing_keeps_no_worker_from_anybody(folder: Path) -> None:
    used(0)
    done = threading.Event()

    states = set()
    errors: list[BaseException] = []

    def acquiring() -> None:
        try:
            for _ in range(300):
                lease = LockFile(workers=[0])
                lease.acquire(MINE)
                lease.release(0)
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=acquiring)
    thread.start()
    while not done.is_set():
        states |= {file.state for file in _admin.files(str(folder.parent))}
    thread.join()
    assert errors == []
    assert states <= {"held", FREE}
    assert states


@pytest.mark.parametrize("when", ["before the check", "before the removal"])
def test_what_took_the_place_of_a_file_stays(when: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes the damaged file, and another acquires the worker, while it is being freed."""
    used(0)
    (folder / "0").write_bytes(b"damaged")
    place, name = (_admin.fcntl, "flock") if when == "before the check" else (_folder.os, "rename")
    real = getattr(place, name)
    holders = []

    def exchange(*arguments: object, **named: object) -> object:
        monkeypatch.undo()
        monkeypatch.setenv("SENET_FAST_LEASES", str(folder.parent))
        (folder / "0").unlink()
        holders.append(PythonSnowflake.acquire(LockFile(workers=[0]), MINE))
        return real(*arguments, **named)

    monkeypatch.setattr(place, name, exchange)
    with pytest.raises(LeaseError, match="was exchanged meanwhile, so it was left; look again"):
        _admin.free(str(folder.parent), MINE, 0, force=True, say=len)
    with holders[0] as generator:
        time.sleep(0.2)
        assert generator.next_id()
        assert generator.lease is not None
        assert generator.lease.losses == 0
        assert [path.name for path in folder.iterdir()] == ["0"]


def test_another_link_in_place_of_a_link_is_no_lock_file(folder: Path) -> None:
    """What had an inode's number before says nothing of what has it now."""
    used(0)
    (folder / "1").symlink_to("nowhere")
    opened = _folder.look_into(str(folder))
    try:
        link = _folder.look_at(opened, "1")
        (folder / "1").unlink()
        with Snowflake.acquire(LockFile(workers=[1]), MINE):
            with pytest.raises(LeaseError, match="was exchanged meanwhile"):
                _folder.remove(opened, "1", link.status)
            assert (folder / "1").stat().st_nlink == 1
    finally:
        os.close(opened.fd)


def test_another_namespace_may_hold_what_seems_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used(0)
    monkeypatch.setattr(_system, "_FIRST_PID_NAMESPACE", 0)
    with Snowflake.acquire(LockFile(workers=[1]), MINE):
        assert [(file.state, file.holders.held) for file in _admin.files(str(folder.parent))] == [
            ("?", None),
            ("held", True),
        ]


def test_in_a_pid_namespace_of_its_own(folder: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    needs.program("unshare")
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to use unshare")
    with Snowflake.acquire(LockFile(workers=[1]), MINE):
        command = [*unshare, *COMMAND, "leases"]
        listed = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=120)
        assert listed.stdout.split("\t")[:3] == ["1", "?", "?"]
        freed = subprocess.run(
            [*command, "free", "1", "--layout", layout_name(MINE)], capture_output=True, text=True, timeout=120
        )
        assert (freed.returncode, freed.stdout) == (1, "")
        assert "worker 1 is held by a process that cannot be seen from here" in freed.stderr


@pytest.mark.parametrize("command", [["list"], ["free", "7"]])
def test_neither_torch_nor_numpy_is_loaded(command: list[str], folder: Path) -> None:
    used(7)
    code = f"""
import sys
from senet_fast.cli import main
assert main(["leases", *{command!r}, "--layout", {layout_name(MINE)!r}]) == 0
assert main(["word", {str(folder / "7")!r}]) == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


@pytest.mark.parametrize("command", [["list"], ["free", "0"]])
def test_an_unset_variable_as_directory(command: list[str]) -> None:
    done = run("leases", *command, "--directory", "")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("leases: directory is empty; expected a path")
