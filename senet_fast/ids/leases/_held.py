"""What a lease is, and how a generator holds one."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import NamedTuple, Protocol

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout

PATIENCE_S = 2.0  # for a store's answer while closing


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
    """Where a worker id comes from. One object leases one worker id at a time. For a grant with an end, `renew` and
    `release` are called by one thread, which the generator starts.

    The store keeps, for each worker, the time `until_ms` before which it may have issued, and never lowers it but to
    what `release` was told. Then neither a pause nor a late message can make two holders issue one ID: a holder's IDs
    all lie before the `until_ms` that it was told, and its successor's all lie at or after it.
    """

    renew_every: float | None
    """Seconds from one renewal to the next; None: never."""

    def acquire(self, layout: Layout) -> Grant:
        """A worker id that nobody else holds; LeaseError where there is none."""

    def renew(self) -> int:
        """The new `until_ms`. LeaseError: another holds it now, do not ask again. Other errors are tried again."""

    def release(self, unused_from_ms: int) -> None:
        """Gives it back; its successor may issue from `unused_from_ms` on."""


class Place(Protocol):
    """What `Held` needs of a generator's state."""

    def skip_to(self, from_ms: int) -> None: ...
    def grant(self, until_ms: int) -> None: ...
    def close(self) -> int: ...


class Held:
    """A lease in use: a thread renews it, and gives it back at the end. Safety does not depend on the thread, as each
    claim is bounded; nor does anyone wait long for it, as a server may never answer.
    """

    def __init__(self, lease: Lease, layout: Layout) -> None:
        self.grant = lease.acquire(layout)
        self._unused_from_ms = self.grant.from_ms
        self._lease = lease
        self._pid = os.getpid()
        self._place: Place | None = None
        self._thread: threading.Thread | None = None
        self._asked: float | None = None  # when the renewal under way began
        self._renew_error: Exception | None = None  # of the last renewal
        self._release_error: Exception | None = None
        self._closing = threading.Lock()
        self._closed = threading.Event()
        if self.grant.until_ms is not None and self.grant.file is not None:
            self.close()
            raise LeaseError(f"{lease!r} granted both a file and an end; expected one of them")

    def start(self, place: Place, now_ms: int, max_backward_ms: int) -> None:
        worker_id, from_ms, until_ms, _ = self.grant
        if until_ms is not None and now_ms >= until_ms:
            raise LeaseError(
                f"worker {worker_id} was leased until {until_ms} ms, and this host's clock already reads {now_ms} ms:"
                " it runs ahead of the store's, or the answer took longer than the lease"
            )
        if from_ms - now_ms > max_backward_ms:
            raise LeaseError(
                f"worker {worker_id} was leased from {from_ms} ms on, and this host's clock reads {now_ms} ms: it runs"
                f" behind the last holder's by more than max_backward_ms = {max_backward_ms}"
            )
        self._place = place
        place.skip_to(from_ms)
        if until_ms is None:
            return
        place.grant(until_ms)
        self._thread = threading.Thread(target=self._keep, args=(place,), name=f"lease of {worker_id}", daemon=True)
        self._thread.start()

    def _keep(self, place: Place) -> None:
        every = self._lease.renew_every
        wait = every
        while not self._closed.wait(wait):
            self._asked = time.monotonic()
            try:
                place.grant(self._lease.renew())
                self._renew_error, wait = None, every
            except LeaseError as error:
                self._renew_error, wait = error, None
            except Exception as error:
                self._renew_error, wait = error, (every or 0) / 4
            finally:
                self._asked = None
        try:
            self._lease.release(self._unused_from_ms)
        except Exception as error:
            self._release_error = error

    def close(self) -> None:
        """Stops the generators of this worker and gives it back. A fork's child leaves that to its parent.

        LeaseError where the store does not answer: it frees the worker id when the lease ends.
        """
        if self._pid != os.getpid():
            return
        with self._closing:
            if self._closed.is_set():
                return
            if self._place is not None:
                self._unused_from_ms = self._place.close()
            self._closed.set()
            if self._thread is None:
                self._lease.release(self._unused_from_ms)
            elif self._thread is not threading.current_thread():  # which may collect a generator as garbage
                self._thread.join(PATIENCE_S)
                if self._thread.is_alive():
                    raise LeaseError(
                        f"worker {self.grant.worker_id} was not given back, since its store has not answered for"
                        f" {PATIENCE_S} s; it will be free when the lease ends"
                    )
                if self._release_error is not None:
                    raise self._release_error

    def forget(self) -> None:
        """close() where nobody hears of an error."""
        with suppress(Exception):
            self.close()

    def why(self) -> str:
        """What became of the renewals, for the message of LeaseExpired."""
        asked, error = self._asked, self._renew_error
        if error is not None:
            return f"; its renewal failed: {error}"
        return "" if asked is None else f"; its renewal has had no answer for {time.monotonic() - asked:.1f} s"
