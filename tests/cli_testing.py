"""What the tests of the command line share."""

import subprocess
import sys
from pathlib import Path

import pytest

from senet_fast.ids import TWITTER, Layout, _system

COMMAND = [sys.executable, "-m", "senet_fast"]
# Where the tests run in a PID namespace of their own, what other namespaces hold cannot be seen.
FREE = "free" if _system.sees_all_processes() else "?"


@pytest.fixture(autouse=True)
def lock_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the host's."""
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path / "leases"))


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


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
