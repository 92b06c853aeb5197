"""Which state a generator uses: one for each worker and layout in a process, wherever it lives."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from senet_fast.ids import _wordfile
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._lease import Grant


class AnyPlace(Protocol):
    holder: object
    """Of the lease, while the worker id is nobody else's; None without."""

    @property
    def kind(self) -> Hashable: ...
    @property
    def last_tick(self) -> int | None:
        """Once closed: the tick of the last ID, from the epoch on; -1 for none."""

    @property
    def successors(self) -> dict[Any, Any]:
        """What took its place, by the key under which it was found."""

    @property
    def gone(self) -> bool:
        """A fork took it away, or another process that shared it gave its lease back."""

    def skip_to_tick(self, tick: int) -> None: ...
    def close(self) -> int: ...


P = TypeVar("P", bound=AnyPlace)


def find(
    places: dict[Any, P],
    make: Callable[[Hashable, int | None], P],
    key: tuple[Layout, int, Any],
    owner: str,
    on_fork: str,
    file: str | os.PathLike[str] | None,
    grant: Grant | None,
    max_drift_ms: int,
    holder: object,
) -> P:
    """The place of `key`, made where it is not there yet: `make(kind, descriptor of the file)`. `holder` is the same
    for all grants of one lease.
    """
    layout, worker_id, _ = key
    leased = grant.file if grant else None
    fd, path = leased or (None, file)
    try:
        kind: Hashable = on_fork
        if path is not None:
            if fd is None:
                fd = _wordfile.open_file(path)
                _wordfile.lock(fd, path)
            status = os.fstat(fd)
            kind = "file", status.st_dev, status.st_ino
            _wordfile.prepare(fd, path, owner, layout, worker_id, max_drift_ms)
        place = _latest(places, key)
        # A lease opens what another closed, and an exclusive one what another process took away.
        exclusive = grant and (leased or grant.until_ms is not None)
        # Of one file two leases of a process can hold the lock only where they share the word.
        shares = leased and place is not None and place.kind == kind
        if exclusive and place is not None and place.holder not in (None, holder) and not shares:
            place.close()  # another lease of this process has lost the worker id, and may not know yet
        if place is None or (grant and place.last_tick is not None) or (exclusive and place.gone):
            new = make(kind, fd)
            if place is not None and place.last_tick is not None:
                new.skip_to_tick(place.last_tick + 1)
            # Atomic: of several threads, or a signal handler within this, the first one's place is everybody's.
            (places if place is None else place.successors).setdefault(key, new)
            place = places[key] = _latest(places, key) or new
        if place.kind != kind:
            raise ValueError(
                f"worker {worker_id} of this layout already has a generator in this process, whose last ID lives"
                f" elsewhere ({_described(place.kind)}); expected the same here, not {_described(kind)}"
            )
        if exclusive:
            place.holder = holder
        return place
    finally:
        if leased is None and fd is not None:
            _wordfile.unlock(fd)
            os.close(fd)


def _latest(places: dict[Any, P], key: Any) -> P | None:
    place = places.get(key)
    while place is not None and key in place.successors:
        place = place.successors[key]
    return place


def _described(kind: Hashable) -> str:
    return f"on_fork={kind!r}" if isinstance(kind, str) else "another file"


def first_tick(layout: Layout, ms: int) -> int:
    """The first tick that lies wholly at or after `ms`, counted from the layout's epoch."""
    return min(max(0, -((layout.epoch_ms - ms) // layout.tick_ms)), layout.timestamp.max + 1)


def end_tick(layout: Layout, ms: int) -> int:
    """The first tick that does not lie wholly before `ms`."""
    return min(max(0, (ms - layout.epoch_ms) // layout.tick_ms), layout.timestamp.max + 1)
