"""Who holds a file by flock(), as the kernel tells it: asking for the lock would keep it from others meanwhile."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple

from senet_fast.ids import _system

_FLOCK = re.compile(r"^[0-9]+: FLOCK +\w+ +\w+ +([0-9]+) ([0-9a-f]+):([0-9a-f]+):([0-9]+) ", re.MULTILINE | re.ASCII)


class Holders(NamedTuple):
    """Whether a file is held, None where that cannot be told; and by which processes, as far as they are known: the
    kernel names the one that locked it, of which forked children go on to hold it when it has ended.
    """

    held: bool | None
    pids: list[int]


class Locks:
    """All locks of the host, when this was made."""

    def __init__(self) -> None:
        self._pids: dict[tuple[int, int, int], list[int]] = {}
        self._complete = False
        with suppress(OSError):
            for pid, major, minor, inode in _FLOCK.findall(_system.proc("locks")):
                self._pids.setdefault((int(major, 16), int(minor, 16), int(inode)), []).append(int(pid))
            self._complete = _system.sees_all_processes()

    def of(self, fd: int) -> Holders:
        pids = self._pids.get(_as_locks_name_it(fd))
        if pids is None:
            return Holders(False if self._complete else None, [])
        return Holders(True, sorted({pid for pid in pids if _system.runs(pid)}))


def _as_locks_name_it(fd: int) -> tuple[int, int, int]:
    """Device and inode of the file system itself; stat() tells others where it has subvolumes or layers (btrfs)."""
    status = os.fstat(fd)
    major, minor, inode = os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
    with suppress(OSError, KeyError, ValueError):
        lines = _system.proc(f"self/fdinfo/{fd}").splitlines()
        about = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        mounts = (line.split(" ", 3) for line in _system.proc("self/mountinfo").split("\n"))
        device = next((mount[2] for mount in mounts if mount[0] == about["mnt_id"]), None)
        if device is not None:
            major, minor = map(int, device.split(":"))
        inode = int(about["ino"])  # since Linux 5.14
    return major, minor, inode
