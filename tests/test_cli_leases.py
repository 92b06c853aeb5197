"""The commands for administrators: lock files listed and freed, and what a word file says."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_testing import lock_files, run  # noqa: F401 - the fixture is for every test here

from senet_fast.ids import TWITTER, Layout, LeaseError, PythonSnowflake, Snowflake
from senet_fast.ids.layout import DISCORD
from senet_fast.ids.leases import LockFile, _admin, _folder, _locks
from senet_fast.ids.leases._store import layout_name, layout_named

OWN = Layout(timestamp=40, worker=3, sequence=13, epoch_ms=1_700_000_000_123, tick_ms=2)
_epochs = itertools.count(1_700_000_100_000)
# Where the tests run in a PID namespace of their own, what other namespaces hold cannot be seen.
FREE = "free" if os.stat("/proc/self/ns/pid").st_ino == _locks._FIRST_PID_NAMESPACE else "?"
NOBODY = {"free": "-", "?": "?"}[FREE]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the lock files of TWITTER."""
    return tmp_path / "leases" / layout_name(TWITTER)


def rows(*arguments: str) -> list[list[str]]:
    done = run("leases", "list", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t") for line in done.stdout.splitlines()]


def used(worker_id: int, layout: Layout = TWITTER, ahead_ms: int = -1000) -> int:
    """The last ID of a worker that was leased and given back."""
    now_ms = [time.time_ns() // 1_000_000 + ahead_ms]
    with Snowflake.acquire(LockFile(workers=[worker_id]), layout, clock=lambda: now_ms[0]) as generator:
        now_ms[0] += 150  # a new file's first IDs wait for whoever held one that was deleted
        return generator.next_id()


def layout_of_its_own() -> Layout:
    """Widths of OWN; a worker's last ID lives in one place in a process."""
    return Layout(timestamp=40, worker=3, sequence=13, epoch_ms=next(_epochs), tick_ms=2)


def written(number: int, layout: Layout = TWITTER) -> str:
    return layout.decode(number).timestamp.isoformat(timespec="milliseconds")


def seen(top: Path) -> dict[str, object]:
    """All that there is to see but the times of access."""
    found: dict[str, object] = {}
    for path in [top, *top.rglob("*")]:
        about = path.lstat()
        kept = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (about.st_ino, about.st_mode, about.st_nlink, about.st_mtime_ns, about.st_ctime_ns, kept)
    return found


def test_what_is_held_free_and_ahead_is_listed(folder: Path) -> None:
    own, last, ahead = used(5, OWN), used(7), used(1, ahead_ms=3_600_000)
    with Snowflake.acquire(LockFile(workers=[3])) as generator:
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
        ["1", "ahead", NOBODY, written(ahead), str(folder / "1")],
        ["3", "held", str(os.getpid()), written(held), "-", str(folder / "3")],
        ["7", FREE, NOBODY, written(last), "-", str(folder / "7")],
    ]
    assert [row[5] for row in of_own] == [listed[0][5]]


def test_the_list_as_json(folder: Path) -> None:
    last = used(7)
    (folder / "8").symlink_to("7")
    done = run("leases", "list", "--json", "--layout", "Twitter")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {
        "worker_id": 7,
        "state": FREE,
        "held": {"free": False, "?": None}[FREE],
        "pids": [],
        "timestamp": written(last),
        "timestamp_ms": TWITTER.decode(last).timestamp_ms,
        "ahead_ms": 0,
        "layout": folder.name,
        "file": str(folder / "7"),
        "why": None,
    }
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
    (row,) = rows("--layout", "twitter")
    assert seen(folder.parent) == before
    assert row[:2] == ["0", "unusable"]
    assert why in row[6]
    with pytest.raises(LeaseError, match=re.escape(why)):
        LockFile(workers=[0]).acquire(TWITTER)
    done = run("leases", "free", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        f"removing {folder / '0'}: .*{re.escape(why)}.*; its last ID is not known, and .*\n", done.stdout
    )
    assert list(folder.iterdir()) == []
    used(0)
    assert run("leases", "free", "0").stdout.startswith(f"nothing to do: {folder / '0'} is in order")


def test_a_last_id_ahead_of_the_clock_needs_force(folder: Path) -> None:
    ahead = used(1, ahead_ms=3_600_000)
    before = seen(folder)
    done = run("leases", "free", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"its IDs up to {written(ahead)} may repeat. Wait until then, set the clock right, or give" in done.stderr
    assert seen(folder) == before
    done = run("leases", "free", "1", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"its IDs up to {written(ahead)} may repeat\n" in done.stdout
    assert not list(folder.iterdir())


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_held_one_is_refused(spoiled: bool, force: list[str], folder: Path) -> None:
    with Snowflake.acquire(LockFile(workers=[2])) as generator:
        if spoiled:
            (folder / "2").chmod(0o666)
        before = seen(folder)
        done = run("leases", "free", "2", *force)
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
    for name in ("x\ty", "01", "1024", "\udcff", ".0.removed-1"):
        (folder / name).touch()
    (folder / "4").mkdir()
    (folder.parent / "notes").touch()
    (folder.parent / layout_name(OWN)).symlink_to("/etc")
    (folder.parent / layout_name(DISCORD)).mkdir(mode=0o700)
    (folder.parent / layout_name(DISCORD)).chmod(0o777)
    says = {row[5].rpartition("/")[2]: row[6] for row in rows() if len(row) == 7}
    no_worker = "is no worker id of the layout"
    assert {name: says[name] for name in ("x\\ty", "01", "1024", "\\udcff", ".0.removed-1")} == dict.fromkeys(
        ("x\\ty", "01", "1024", "\\udcff", ".0.removed-1"), no_worker
    )
    assert (says["4"], says["notes"]) == ("is a folder", "is not the folder of a layout")
    assert says[layout_name(OWN)].endswith("is a symbolic link; expected a folder")
    assert "so everybody may write to it" in says[layout_name(DISCORD)]
    assert len(says) == 9
    done = run("leases", "free", "4")
    assert (done.returncode, done.stderr) == (
        1,
        f"leases: {folder / '4'} cannot be freed (is a folder); see to it by hand\n",
    )


def test_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "leases"
    for _ in range(2):
        done = run("leases", "free", "5")
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
                lease.acquire(TWITTER)
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
        holders.append(PythonSnowflake.acquire(LockFile(workers=[0])))
        return real(*arguments, **named)

    monkeypatch.setattr(place, name, exchange)
    with pytest.raises(LeaseError, match="was exchanged meanwhile, so it was left; look again"):
        _admin.free(str(folder.parent), TWITTER, 0, force=True, say=len)
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
        with Snowflake.acquire(LockFile(workers=[1])):
            with pytest.raises(LeaseError, match="was exchanged meanwhile"):
                _folder.remove(opened, "1", link.status)
            assert (folder / "1").stat().st_nlink == 1
    finally:
        os.close(opened.fd)


def test_another_namespace_may_hold_what_seems_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used(0)
    monkeypatch.setattr(_locks, "_FIRST_PID_NAMESPACE", 0)
    with Snowflake.acquire(LockFile(workers=[1])):
        assert [(file.state, file.holders.held) for file in _admin.files(str(folder.parent))] == [
            ("?", None),
            ("held", True),
        ]


@pytest.mark.parametrize("layout", [TWITTER, DISCORD, OWN, Layout(timestamp=40, sequence=1, epoch_ms=0)])
def test_names_of_folders_are_read_back(layout: Layout) -> None:
    name = layout_name(layout)
    assert layout_named(name) == layout
    for wrong in (
        f"{name}-",
        f"{name}x",
        f"x{name}",
        name.replace("-", "--"),
        name.replace("sequence", "sequence0"),
        "",
    ):
        assert layout_named(wrong) is None


@pytest.mark.parametrize("command", [["list"], ["free", "7"]])
def test_neither_torch_nor_numpy_is_loaded(command: list[str], folder: Path) -> None:
    used(7)
    code = f"""
import sys
from senet_fast.cli import main
assert main(["leases", *{command!r}]) == 0
assert main(["word", {str(folder / "7")!r}]) == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


def word(path: Path, *arguments: str) -> str:
    done = run("word", str(path), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("generator_class", [Snowflake, PythonSnowflake])
def test_a_word_file(generator_class: type[Snowflake], tmp_path: Path) -> None:
    path, layout = tmp_path / "word", layout_of_its_own()
    generator = generator_class(worker_id=3, layout=layout, file=path, max_drift_ms=500)
    assert json.loads(word(path, "--json"))["last_id"] is None
    assert re.search("^last_id +none$", word(path), re.MULTILINE)
    last = generator.next_ids(5000)[-1]
    before = seen(tmp_path)
    facts = {
        "file": str(path),
        "class": generator_class.__name__,
        "worker_id": 3,
        "layout": repr(layout),
        "last_id": str(last),
        "timestamp": written(int(last), layout),
        "boot": "this",
        "max_drift_ms": 500,
        "held": {"free": False, "?": None}[FREE],
        "pids": [],
    }
    assert json.loads(word(path, "--json")) == facts
    assert seen(tmp_path) == before
    lines = dict(re.split("  +", line, maxsplit=1) for line in word(path).splitlines())
    expected = {name: str(value) for name, value in facts.items() if name != "pids"}
    assert lines == {**expected, "held": {"free": "no", "?": "?"}[FREE]}
    path.write_bytes(path.read_bytes().replace(Path("/proc/sys/kernel/random/boot_id").read_bytes().strip(), b"e" * 36))
    assert json.loads(word(path, "--json"))["boot"] == "another"


def test_a_lock_file_is_a_word_file(folder: Path) -> None:
    with Snowflake.acquire(LockFile(workers=[9])) as generator:
        last = generator.next_id()
        facts = json.loads(word(folder / "9", "--json"))
        assert (facts["class"], facts["last_id"], facts["held"], facts["pids"]) == (
            "Snowflake",
            str(last),
            True,
            [os.getpid()],
        )
        assert re.search(f"^held +by {os.getpid()}$", word(folder / "9"), re.MULTILINE)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(b""), "is empty: no generator has used it yet"),
        (lambda path: path.write_bytes(b"abc"), "is not the last ID of a generator: it begins with b'abc'"),
        (lambda path: path.write_bytes(path.read_bytes()[:256] + b"\xff" * 3840), "is damaged: 0xffffffffffffffff"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"=3 ", b"=9 ")), "which is no worker of a layout"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"ce=13", b"ce=99")),
            "which is no worker of a layout",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"ce=13", b"xx=13")),
            "which is no worker of a layout",
        ),
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "is no plain file; expected one"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no plain file; expected one"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "is a symbolic link"),
    ],
)
def test_what_is_no_word_file(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "word"
    Snowflake(worker_id=3, layout=layout_of_its_own(), file=path)
    spoil(path)
    done = run("word", str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"word: file {str(path)!r}")
    assert says in done.stderr
