"""The file that holds the last ID of one worker and layout, for all processes that name it.

256 bytes of text say whose it is; behind them stand two native 64-bit numbers: the last ID issued, as
`tick << sequence bits | sequence` with ticks counted from 2, or 3 for none; and an end that is not used in files.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import time
from pathlib import Path

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout

OFFSET = 256
NONE = 3
FIRST_TICK = 2
_STATE = struct.Struct("=QQ")
_UNBOUNDED = (1 << 64) - 1
_ATTACH_S = 5.0


def boot() -> str:
    """What names this run of the kernel: a file that the last run did not get to write back is then recognised."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _header(owner: str, layout: Layout, worker_id: int, max_drift_ms: int) -> bytes:
    text = f"senet_fast last ID, format 1, of {owner}\nworker_id={worker_id} {layout!r}\n{boot()} {max_drift_ms}\n"
    return text.encode().ljust(OFFSET, b"\0")


def open_file(path: str | os.PathLike[str], *, for_everybody: bool = False) -> int:
    """The file's descriptor; the file is made where it is not there."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    if for_everybody:
        os.fchmod(fd, 0o666)
    return fd


def lock(fd: int, path: str | os.PathLike[str]) -> None:
    """Holds the file while it is initialised or checked, until unlock(): a mapping keeps the lock after a close()."""
    started = time.monotonic()
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - started > _ATTACH_S:
                raise LeaseError(
                    f"file {os.fspath(path)!r} is held by another process, which leased its worker"
                ) from None
            time.sleep(0.005)


def unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def prepare(
    fd: int, path: str | os.PathLike[str], owner: str, layout: Layout, worker_id: int, max_drift_ms: int
) -> None:
    """Initialises a new file; checks an old one. The caller holds its lock."""
    name = os.fspath(path)
    wanted = _header(owner, layout, worker_id, max_drift_ms)
    size = os.fstat(fd).st_size
    if size == 0:
        os.pwrite(fd, (wanted + _STATE.pack(NONE, _UNBOUNDED)).ljust(mmap.PAGESIZE, b"\0"), 0)
        return
    found = os.pread(fd, OFFSET + _STATE.size, 0)
    lines = found[:OFFSET].rstrip(b"\0").decode(errors="replace").split("\n")
    match = re.fullmatch(r"(\S+) (\d+)", lines[2]) if len(lines) == 4 else None
    if size != mmap.PAGESIZE or match is None:
        raise _not_ours(name, found)
    for at, line in enumerate(wanted.decode().split("\n")[:2]):
        if lines[at] != line:
            raise ValueError(f"file {name!r} says {lines[at]!r}; expected {line!r}")
    last_boot, drift = match[1], int(match[2])
    if last_boot != boot() and drift:
        # The kernel stopped before it wrote the file back: what was borrowed from the future may be missing in it.
        word, end = _STATE.unpack(found[OFFSET:])
        now_ms = time.time_ns() // 1_000_000
        tick = max(0, min((now_ms + drift - layout.epoch_ms) // layout.tick_ms, layout.timestamp.max)) + FIRST_TICK
        os.pwrite(fd, _STATE.pack(max(word, (tick + 1 << layout.sequence.width) - 1), end), OFFSET)
        drift = 0
    os.pwrite(fd, _header(owner, layout, worker_id, max(drift, max_drift_ms)), 0)


def _not_ours(path: str | os.PathLike[str], found: bytes) -> ValueError:
    return ValueError(f"file {os.fspath(path)!r} is not the last ID of a generator: it begins with {found[:40]!r}")


def last_ms(fd: int, path: str | os.PathLike[str], layout: Layout) -> int | None:
    """The time of the last ID, None for none or for a new file."""
    found = os.pread(fd, OFFSET + _STATE.size, 0)
    if not found:
        return None
    if len(found) < OFFSET + _STATE.size:
        raise _not_ours(path, found)
    word, _ = _STATE.unpack(found[OFFSET:])
    return None if word == NONE else ((word >> layout.sequence.width) - FIRST_TICK) * layout.tick_ms + layout.epoch_ms
