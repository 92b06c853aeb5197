"""What the leases of all servers share."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from senet_fast.ids._numbers import check_int
from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._lease import Grant


class Taken(NamedTuple):
    """No worker id is free; one may be in `retry_s` seconds."""

    retry_s: float


class StoreLease:
    """A worker id that a server remembers the holder of.

    ttl: seconds that a grant lasts; it is renewed three times as often. A crashed holder's worker id is free again
        after ttl. All holders of one store must use the same.
    wait: the longest, in seconds, that acquiring may wait for a worker id to become free; default: twice ttl.
    workers: the worker ids to choose from, the first free one; default: all of the layout.
    """

    renew_every: float | None

    def __init__(self, *, ttl: float = 10.0, wait: float | None = None, workers: Iterable[int] | None = None) -> None:
        if not ttl >= 0.05:
            raise ValueError(f"ttl = {ttl}; expected ttl >= 0.05, in seconds")
        self.renew_every = ttl / 3
        self._ttl_ms = round(ttl * 1000)
        self._wait = 2 * ttl if wait is None else wait
        self._named = named(workers)
        self._owner = ""
        self._worker_id = -1

    def acquire(self, layout: Layout) -> Grant:
        if self._worker_id >= 0:
            raise LeaseError(f"this lease already holds worker {self._worker_id}; expected one for each generator")
        if self._ttl_ms < 2 * layout.tick_ms:
            raise ValueError(f"ttl = {self._ttl_ms / 1000}; expected at least two ticks of {layout.tick_ms} ms")
        workers = candidates(self._named, layout)
        self._owner = secrets.token_hex(16)  # a new one each time: a late message of the last time must not count
        deadline = time.monotonic() + self._wait
        while isinstance(taken := self._try(layout_name(layout), workers), Taken):
            if time.monotonic() + taken.retry_s > deadline:
                raise LeaseError(
                    f"all {len(workers)} worker ids are held; the next may be free in {taken.retry_s:.1f} s, and"
                    f" wait = {self._wait} s"
                )
            time.sleep(max(0.001, taken.retry_s))
        self._worker_id = taken.worker_id
        return taken

    def _try(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        with self._explained(LeaseError):
            return self._take(layout, workers)

    def renew(self) -> int:
        with self._explained(PermissionError):  # not LeaseError: the right may be given back before the lease ends
            until_ms = self._extend()
        if until_ms is None:
            raise LeaseError(f"worker {self._worker_id} is no longer held by this lease")
        return until_ms

    def release(self, unused_from_ms: int) -> None:
        try:
            with self._explained(LeaseError):
                self._give_back(unused_from_ms)
        finally:
            self._worker_id = -1

    @contextmanager
    def _explained(self, kind: type[Exception]) -> Iterator[None]:
        """Raises `kind` with a sentence of its own where the server refuses for want of a right."""
        try:
            yield
        except Exception as error:
            if (refusal := self._refusal(error)) is None:
                raise
            raise kind(refusal) from error

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        raise NotImplementedError

    def _extend(self) -> int | None:
        """The new end; None if another is the owner."""
        raise NotImplementedError

    def _give_back(self, unused_from_ms: int) -> None:
        raise NotImplementedError

    def _refusal(self, error: Exception) -> str | None:
        """Which right is missing and how it is given; None where `error` is about something else."""
        return None


def named(workers: Iterable[int] | None) -> Sequence[int] | None:
    if workers is None:
        return None
    if not (listed := workers if isinstance(workers, range) else list(workers)):
        raise ValueError("workers is empty; expected worker ids, or None for all of the layout")
    return listed


def candidates(named: Sequence[int] | None, layout: Layout) -> Sequence[int]:
    if named is None:
        return range(layout.worker.max + 1)
    for worker_id in named:
        check_int("worker_id", worker_id, 0, layout.worker.max, f" ({layout.worker.width} bits)")
    return named


def layout_name(layout: Layout) -> str:
    """A layout's key, such as timestamp41-worker10-sequence12-1288834974657."""
    fields = [(name, getattr(layout, name)) for name in ("timestamp", "worker", "sequence")]
    widths = [f"{name}{field.width}" for name, field in sorted(fields, key=lambda f: -f[1].shift) if field.width]
    return "-".join([*widths, f"{layout.epoch_ms}", *([f"tick{layout.tick_ms}"] if layout.tick_ms != 1 else [])])


def layout_named(name: str) -> Layout | None:
    """The layout of which layout_name() makes `name`; None if there is none."""
    numbers = {field or "epoch_ms": int(digits) for field, digits in re.findall(r"([a-z]*)([0-9]{1,18})\b", name)}
    if "tick" in numbers:
        numbers["tick_ms"] = numbers.pop("tick")
    with suppress(TypeError, ValueError):
        if layout_name(layout := Layout(**numbers)) == name:
            return layout
    return None


def now_ms() -> int:
    """This host's clock, where the store has none."""
    return time.time_ns() // 1_000_000
