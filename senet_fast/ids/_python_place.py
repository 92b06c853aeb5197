"""The state of a worker in plain Python, for `PythonSnowflake`; the compiled class has its own."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from senet_fast.ids import _places, _system, _wordfile
from senet_fast.ids.layout import Layout


class Place:
    """The last ID issued, as `tick << sequence bits | sequence`, and where the lease ends; one of these for all
    generators of a worker and layout. Shared ones live in a file, which may have no name.
    """

    def __init__(self, layout: Layout, kind: Hashable, fd: int | None) -> None:
        self.layout = layout
        self.kind = kind
        self.last_tick: int | None = None  # once closed
        self.successors: dict[Any, Place] = {}
        self.holder: object = None
        self._pid = self._lock_pid = os.getpid()
        self._lock, self._depth = threading.RLock(), 0
        # What signal handlers stored while the thread that they interrupted was alone, and may store an earlier word.
        self.stored_within: list[int] = []
        self._file = None if fd is None else os.fdopen(os.dup(fd), "r+b", 0)
        if kind == "share":
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the place
            self._file.truncate(mmap.PAGESIZE)
        self._memory = mmap.mmap(self._file.fileno() if self._file else -1, mmap.PAGESIZE)
        if fd is None:
            self._store(-2, _wordfile.UNBOUNDED)  # not the word before the first: nobody has opened the first tick

    def __del__(self) -> None:
        if self._file:
            self._file.close()

    @property
    def forked(self) -> bool:
        return self.kind == "raise" and self._pid != os.getpid()

    @property
    def gone(self) -> bool:
        return self.forked or self.closed

    @property
    def closed(self) -> bool:
        return self.last_tick is not None or self._load()[1] == 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the threads, and the processes too where they share the place; but for signal handlers, which may
        come here again in the thread that is here.
        """
        if self._lock_pid != os.getpid():  # a fork: the lock may have been held, and the file's lock is the parent's
            self._lock_pid, self._lock, self._depth = os.getpid(), threading.RLock(), 0
            if self._file and (fd := _system.after_fork(self._file.fileno())) is not None:
                with self._file:  # the parent's
                    self._file = os.fdopen(fd, "r+b", 0)
        with self._lock:
            depth = self._depth
            try:
                self._depth = depth + 1
                self._lock_file(fcntl.F_WRLCK)
                yield
            finally:
                while self._load()[0] < self.word:  # until no handler came in between
                    self._store(self.word, self.end)
                self._depth = depth
                if depth == 0:
                    self._lock_file(fcntl.F_UNLCK)

    def _lock_file(self, kind: int) -> None:
        if self._file:
            _system.lock_claims(self._file.fileno(), kind, mmap.PAGESIZE)

    # In the file ticks are counted from 2, as _wordfile has it.
    def _load(self) -> tuple[int, int]:
        word, end = struct.unpack_from("=QQ", self._memory, _wordfile.OFFSET)
        return word - (_wordfile.FIRST_TICK << self.layout.sequence.width), end

    def _store(self, word: int, end: int) -> None:
        first = _wordfile.FIRST_TICK << self.layout.sequence.width
        struct.pack_into("=QQ", self._memory, _wordfile.OFFSET, word + first, end)

    @property
    def word(self) -> int:
        return max([self._load()[0], *self.stored_within])

    @word.setter
    def word(self, word: int) -> None:
        if self.is_within:
            self.stored_within.append(word)
        self._store(word, self._load()[1])

    @property
    def is_within(self) -> bool:
        """Whether this is a signal handler's call, and the interrupted call is alone here, too."""
        return self._depth > 1

    @property
    def end(self) -> int:
        return self._load()[1]

    def skip_to(self, from_ms: int) -> None:
        self.skip_to_tick(_places.first_tick(self.layout, from_ms))

    def skip_to_tick(self, tick: int) -> None:
        with self.locked():
            self.word = max(self.word, (tick << self.layout.sequence.width) - 1)

    def grant(self, until_ms: int) -> None:
        end = _places.end_tick(self.layout, until_ms) << self.layout.sequence.width
        with self.locked():
            self._store(self.word, end if self.end == _wordfile.UNBOUNDED else max(self.end, end))

    def close(self) -> int:
        """Refuses all later claims; the time of the first tick that is free, in ms."""
        width = self.layout.sequence.width
        with self.locked():
            if self.last_tick is None:
                self.last_tick = max(-1, self.word >> width)
            if isinstance(self.kind, str):  # a named file stays open to others
                self._store(self.word, 0)
        return self.layout.epoch_ms + (self.last_tick + 1) * self.layout.tick_ms
