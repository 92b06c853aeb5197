"""What the tests of attacks share: other users, and a mount namespace with a /var/tmp of its own."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import select
import signal
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ids_testing import LIMIT_S

MALLORY, BOB, GROUP = 65534, 54321, 54322
DEFAULT = Path("/var/tmp/senet_fast_ids-0")
VICTIM = Path("/var/tmp/victim")

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
libc = ctypes.CDLL(None, use_errno=True)


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
        libc.unshare(_CLONE_NEWNS),
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        libc.mount(b"tmpfs", b"/var/tmp", b"tmpfs", 0, b"mode=1777"),
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


needs_users = pytest.mark.skipif(not _can_attack(), reason="needs root and mount namespaces, to be two users")


def isolated(call: Callable[[], object]) -> None:
    def run() -> None:
        _own_namespace()
        VICTIM.mkdir(mode=0o755)
        call()
        assert stat.S_IMODE(VICTIM.stat().st_mode) == 0o755
        assert list(VICTIM.iterdir()) == []

    Child(run).join()


@contextmanager
def attacking(step: Callable[[int], object]) -> Iterator[Callable[[], int]]:
    """Mallory runs `step` again and again meanwhile, whatever it raises; tells how often it did."""
    steps = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def run() -> None:
        for number in count():
            with suppress(OSError):
                step(number)
            steps[0] = number

    signal_was = signal.alarm(0)
    attacker = Child(run, MALLORY, MALLORY)
    try:
        yield lambda: steps[0]
    finally:
        attacker.kill()
        signal.alarm(signal_was)


def shared_folder(name: str = "shared") -> Path:
    folder = Path("/var/tmp", name)
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2770)
    return folder


def drawn(generator: Any, n: int) -> list[int]:
    return [generator.next_id() for _ in range(n)]
