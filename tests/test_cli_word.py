"""What a word file says, as the command shows it."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_testing import FREE, lock_files, run, seen, written  # noqa: F401 - the fixture is for every test here

from senet_fast.ids import Layout, PythonSnowflake, Snowflake
from senet_fast.ids.leases import LockFile
from senet_fast.ids.leases._store import layout_name

_epochs = itertools.count(1_700_000_100_000)


def layout_of_its_own() -> Layout:
    """A worker's last ID lives in one place in a process."""
    return Layout(timestamp=40, worker=3, sequence=13, epoch_ms=next(_epochs), tick_ms=2)


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


def test_a_lock_file_is_a_word_file(tmp_path: Path) -> None:
    layout = layout_of_its_own()
    path = tmp_path / "leases" / layout_name(layout) / "6"
    with Snowflake.acquire(LockFile(workers=[6]), layout) as generator:
        last = generator.next_id()
        facts = json.loads(word(path, "--json"))
        assert (facts["class"], facts["last_id"], facts["held"], facts["pids"]) == (
            "Snowflake",
            str(last),
            True,
            [os.getpid()],
        )
        assert re.search(f"^held +by {os.getpid()}$", word(path), re.MULTILINE)


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
