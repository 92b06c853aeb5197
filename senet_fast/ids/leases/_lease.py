"""What a lease is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from senet_fast.ids.layout import Layout


class Grant(NamedTuple):
    """The exclusive right to one worker id for timestamps from `from_ms` to before `until_ms` (ms since 1970, UTC).

    `until_ms` None: without end. `file`: a locked descriptor and its path, if the last ID shall live in that file; such
    a grant has no end.
    """

    worker_id: int
    from_ms: int = 0
    until_ms: int | None = None
    file: tuple[int, str] | None = None


class Lease(Protocol):
    """Where a worker id comes from. One object leases one worker id at a time.

    The store keeps, for each worker, the time `until_ms` before which it may have issued, and never lowers it but to
    what `release` was told. Then neither a pause nor a late message can make two holders issue one ID: a holder's IDs
    all lie before the `until_ms` that it was told, and its successor's all lie at or after it.
    """

    renew_every: float | None
    """Seconds from one renewal to the next, by a thread that the generator starts and that also calls `release`. 0: no
    thread; the call that meets the end of the grant (of a grant with a file, every 0.1 s) renews it. None: never.
    """

    def acquire(self, layout: Layout) -> Grant:
        """A worker id that nobody else holds; LeaseError where there is none. Called again after a loss."""

    def renew(self) -> int:
        """The new `until_ms`. LeaseError: another holds it now, do not ask again. Other errors are tried again."""

    def release(self, unused_from_ms: int) -> None:
        """Gives it back; its successor may issue from `unused_from_ms` on. Also called for a lease that was lost."""


class LeaseStatus(NamedTuple):
    """How the lease of a generator stands. Times are those of this process and of its host's clock."""

    worker_id: int
    state: str
    """"held", "lost" (no ID is issued until a worker id was acquired again) or "closed"."""
    left_s: float | None
    """Seconds until the end that was granted last, below 0 past it; None for no end."""
    renewals: int
    """How many were answered."""
    losses: int
    """How often the lease was lost."""
    waiting_s: float | None
    """How long the request under way has been without an answer; None where there is none."""
    last_error: str | None
    """Why the last request failed, None if it was answered."""


class Place(Protocol):
    """What `Held` needs of a generator's state."""

    @property
    def gone(self) -> bool: ...
    def skip_to(self, from_ms: int) -> None: ...
    def grant(self, until_ms: int) -> None: ...
    def close(self) -> int: ...
