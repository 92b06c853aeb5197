"""The file that holds the last ID of one worker and layout, for all processes that name it.

256 bytes of text say whose it is; behind them stand two native 64-bit numbers: the last ID issued, as
`tick << sequence bits | sequence` with ticks counted from 2, or 3 for none; and the end up to which the holder of a
lock file may issue before it looks again whether the file is still there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
import struct
import time
from contextlib import suppress
from typing import NamedTuple

from senet_fast.ids import _system
from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout

OFFSET = 256
NONE = 3
FIRST_TICK = 2
ANY_OWNER = "LockFile"
UNBOUNDED = (1 << 64) - 1
_STATE = struct.Struct("=QQ")
_ATTACH_S = 5.0
_INIT_LOCK_AT = 1 << 40  # a byte far behind the file's end, which claims of the twin do not lock


class Content(NamedTuple):
    """What a file says. `owner`: the class that made it; `whose`: worker and layout, as text."""

    owner: str
    whose: str
    boot: str
    max_drift_ms: int
    word: int
    end: int

    def last_ms(self, layout: Layout) -> int | None:
        """The time of the last ID, None for none."""
        tick = (self.word >> layout.sequence.width) - FIRST_TICK
        return None if tick < 0 else tick * layout.tick_ms + layout.epoch_ms

    def last_id(self, layout: Layout, worker_id: int) -> int | None:
        """The last ID, None for none."""
        last_ms = self.last_ms(layout)
        return None if last_ms is None else layout.encode(last_ms, worker_id, self.word & layout.sequence.max)


def whose(layout: Layout, worker_id: int) -> str:
    return f"worker_id={worker_id} {layout!r}"


def of_whom(content: Content, path: str | os.PathLike[str]) -> tuple[Layout, int]:
    """The layout and the worker id that `whose` names; ValueError where it names none."""
    numbers = {name: int(digits) for name, digits in re.findall(r"(\w+)=([0-9]{1,18})\b", content.whose)}
    with suppress(TypeError, ValueError):
        worker_id = numbers.pop("worker_id", -1)
        layout = Layout(**numbers)
        if whose(layout, worker_id) == content.whose and 0 <= worker_id <= layout.worker.max:
            return layout, worker_id
    raise ValueError(f"file {os.fspath(path)!r} is damaged: it says {content.whose!r}, which is no worker of a layout")


def open_file(path: str | os.PathLike[str], flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """The file's descriptor; the file is made where it is not there, unless other flags are given."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o660)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        or_none = ", or a name that is free" if flags & os.O_CREAT else ""
        raise ValueError(f"file {os.fspath(path)!r} is no plain file; expected one{or_none}")
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


def read(fd: int, path: str | os.PathLike[str]) -> Content | None:
    """What the file says, None for a new one; ValueError where it is no such file, or a damaged one."""
    size = os.fstat(fd).st_size
    if size == 0:
        return None
    found = os.pread(fd, OFFSET + _STATE.size, 0)
    match = re.fullmatch(
        r"senet_fast last ID, format 1, of (\S+)\n(.+)\n(\S+) (\d+)\n\0*",
        found[:OFFSET].decode(errors="replace"),
    )
    if size != mmap.PAGESIZE or match is None:
        raise ValueError(f"file {os.fspath(path)!r} is not the last ID of a generator: it begins with {found[:40]!r}")
    word, end = _STATE.unpack(found[OFFSET:])
    return Content(match[1], match[2], match[3], int(match[4]), word, end)


def check(content: Content, path: str | os.PathLike[str], layout: Layout, worker_id: int) -> None:
    """ValueError where the file is another worker's or layout's, or holds what is no last ID of it."""
    name = os.fspath(path)
    if content.whose != (wanted := whose(layout, worker_id)):
        raise ValueError(f"file {name!r} says {content.whose!r}; expected {wanted!r}")
    past = FIRST_TICK + layout.timestamp.max + 1 << layout.sequence.width
    if not NONE <= content.word < past:
        raise ValueError(f"file {name!r} is damaged: {content.word:#x} is no last ID of {layout!r}")


def prepare(
    fd: int,
    path: str | os.PathLike[str],
    owner: str,
    layout: Layout,
    worker_id: int,
    max_drift_ms: int,
    *,
    exclusive: bool = False,
) -> None:
    """Initialises a new file; checks an old one. The owner is the class that writes to it, the two of which must not do
    so at once. `exclusive`: nobody else has it, so its last owner does not matter, nor does this one to the next.
    """
    with _system.alone(fd, _INIT_LOCK_AT):
        boot = _system.boot()
        content = read(fd, path)
        if boot == _system.UNKNOWN_BOOT and (max_drift_ms or (content and content.max_drift_ms)):
            # Whether what was borrowed has been written back could not be told.
            raise LeaseError(f"max_drift_ms with file {os.fspath(path)!r}: the system does not say when it was started")
        header = f"senet_fast last ID, format 1, of {owner}\n{whose(layout, worker_id)}\n{boot}"
        if content is None:
            state = _STATE.pack(NONE, UNBOUNDED)
            os.pwrite(fd, (_padded(f"{header} {max_drift_ms}\n") + state).ljust(mmap.PAGESIZE, b"\0"), 0)
            return
        check(content, path, layout, worker_id)
        if content.owner not in (owner, ANY_OWNER) and not exclusive:
            raise ValueError(f"file {os.fspath(path)!r} says {content.owner!r}; expected {owner!r}")
        drift = content.max_drift_ms
        if content.boot != boot and drift:
            # The kernel stopped before it wrote the file back: what was borrowed from the future may be missing in it.
            now_ms = time.time_ns() // 1_000_000
            tick = max(0, min((now_ms + drift - layout.epoch_ms) // layout.tick_ms, layout.timestamp.max))
            write_word(fd, max(content.word, (tick + FIRST_TICK + 1 << layout.sequence.width) - 1))
            drift = 0
        os.pwrite(fd, _padded(f"{header} {max(drift, max_drift_ms)}\n"), 0)


def write_word(fd: int, word: int) -> None:
    """Makes `word` the last ID of a file that is not mapped and that nobody else writes to."""
    os.pwrite(fd, struct.pack("=Q", word), OFFSET)


def _padded(header: str) -> bytes:
    return header.encode().ljust(OFFSET, b"\0")
