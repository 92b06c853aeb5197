"""How a generator holds a lease."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from senet_fast.ids import _wordfile
from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._lease import Grant, Lease, LeaseStatus, Place
from senet_fast.ids.leases._threads import why_no_thread
from senet_fast.ids.leases._turn import Turn

PATIENCE_S = 2.0  # for a store's answer, while closing or while a call meets the lease's end
LOOK_MS = 100  # how long the holder of a file issues before it looks whether the file is still there

CLOSED = "was given back by close(); acquire a worker id again"

logger = logging.getLogger("senet_fast.ids")


class Held:
    """A lease in use. Safety depends on no thread and no answer, as each claim is bounded; nor does anyone wait long,
    as a server may never answer.

    reacquire: whether a lost lease is acquired again, with whatever worker id there is then.
    on_change: is called with the LeaseStatus after each loss and each worker id that was acquired again.
    """

    def __init__(
        self,
        lease: Lease,
        layout: Layout,
        *,
        reacquire: bool = True,
        on_change: Callable[[LeaseStatus], object] | None = None,
    ) -> None:
        self.holder = object()
        self._lease = lease
        self._layout = layout
        self.grant = self._acquired()
        self._reacquire = reacquire
        self._on_change = on_change
        self._adopt: Callable[[Grant], Place | None] = lambda grant: None
        self._pid = os.getpid()
        self._place: Place | None = None
        self._ahead_ms = 0
        self._until_ms: int | None = None
        self._unused_from_ms = self.grant.from_ms
        self._state = "held"
        self._renewals = self._losses = self._answers = 0
        self._asked: float | None = None  # when the request under way began
        self._error: str | None = None  # of the last request; text, as an exception would keep all that it went through
        self._hopeless = False  # the last request failed, or there is none to come: nobody waits for the next
        self._close_wanted = self._done = False
        self._release_error: Exception | None = None
        self._turn = Turn()
        self._thread: threading.Thread | None = None
        # Unlike those of threading, a simple queue may be put to where it is being put to already, as in a finalizer.
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        if self.grant.until_ms is not None and self.grant.file is not None:
            self.close()
            raise LeaseError(f"{lease!r} granted both a file and an end; expected one of them")

    @property
    def status(self) -> LeaseStatus:
        until_ms, asked = self._until_ms, self._asked
        return LeaseStatus(
            self.grant.worker_id,
            self._state,
            None if until_ms is None or self.grant.file else until_ms / 1000 - time.time(),
            self._renewals,
            self._losses,
            None if asked is None else time.monotonic() - asked,
            self._error,
        )

    def start(
        self, place: Place, now_ms: int, max_backward_ms: int, max_drift_ms: int, adopt: Callable[[Grant], Place | None]
    ) -> None:
        """Bounds `place` by the grant. `adopt` is asked for the place of another grant, after a loss."""
        self._adopt = adopt
        self._ahead_ms = max_drift_ms
        self.begin(self.grant, place, now_ms, max_backward_ms)
        if self._lease.renew_every != 0 and self.grant.until_ms is not None:
            name = f"lease of {self.grant.worker_id}"
            thread = threading.Thread(target=self._keep, name=name, daemon=True)
            thread.start()  # raises where there can be no more threads
            self._thread = thread

    def _acquired(self) -> Grant:
        grant = self._lease.acquire(self._layout)
        # Before anybody writes to it: who looks for the state may skip to a later tick.
        content = _wordfile.read(*grant.file) if grant.file and self._looks(grant) else None
        self._is_new_file = content is None or content.last_ms(self._layout) is None
        return grant

    def _looks(self, grant: Grant) -> bool:
        """Whether claims look if the file is still there."""
        return grant.file is not None and self._lease.renew_every == 0

    def begin(self, grant: Grant, place: Place, now_ms: int, max_backward_ms: int) -> None:
        worker_id, from_ms, until_ms, _ = grant
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
        if self._looks(grant):
            self._lease.renew()  # looks: the file may have been deleted between its acquisition and `now_ms`
            until_ms = self._until_look(now_ms)
            if self._is_new_file:
                # Made in place of one that was deleted? Whoever held that may issue until it looks again.
                place.skip_to(until_ms)
        place.skip_to(from_ms)
        if until_ms is not None:
            place.grant(until_ms)
        self._place, self._until_ms = place, until_ms

    def _until_look(self, now_ms: int) -> int:
        """The end of the tick in which the file will be looked at again, after a look that was not before `now_ms`."""
        layout = self._layout
        ticks = (now_ms + LOOK_MS + self._ahead_ms - layout.epoch_ms) // layout.tick_ms + 1
        return layout.epoch_ms + ticks * layout.tick_ms

    def extend(self, now_ms: int, patience_s: float) -> bool:
        """Whether a claim that met the end may be tried again. It waits `patience_s` at the most for the answers of the
        store that are under way, or that nobody has asked for yet.
        """
        if self._lease.renew_every == 0:
            return self._extend_here(now_ms, patience_s)
        if self._thread is None or self._thread is threading.current_thread() or self._pid != os.getpid():
            return False
        answers, deadline = self._answers, time.monotonic() + patience_s
        if self._asked is None and not self._hopeless:
            self._messages.put("renew")
        while self._thread.is_alive() and self._state != "closed" and not self._hopeless:
            if self._state == "held" and self._answers != answers:
                return True
            if time.monotonic() >= deadline or self._turn.is_of(threading.get_ident()):
                break
            time.sleep(0.001)
        return False

    def _extend_here(self, now_ms: int, patience_s: float) -> bool:
        """Without a thread: also in forked children, each of which looks for itself."""
        mine = (threading.get_ident(),)
        try:
            if not self._turn.take(mine, patience_s):
                return False
            place = self._place
            if self._state == "held" and place is not None:
                try:
                    if place.gone:
                        raise LeaseError("another process that shares it lost it or gave it back, or another took it")
                    until_ms = self._lease.renew()
                except LeaseError as error:
                    place.close()  # what is mapped is the old file, which children may have, too
                    self._lost(error)
                except OSError as error:  # may pass: the next call tries again
                    if error.errno is None:  # not the system's, but a signal handler's TimeoutError, say
                        raise
                    self._error = _said(error)
                    return False
                else:
                    if self.grant.file:
                        until_ms = self._until_look(now_ms)
                    else:
                        self._renewals += 1
                    place.grant(until_ms)
                    self._until_ms, self._error = until_ms, None
                    return True
            return self._state == "lost" and self._reacquire and self._acquired_again()
        finally:
            self._turn.end(mine)
            if self._close_wanted:  # by a signal handler, meanwhile
                self.close()

    def _keep(self) -> None:
        """The thread: renews, acquires again what was lost, and gives back at the end."""
        every = self._lease.renew_every
        wait = every
        while self._next_message(wait) != "close":
            if self._state != "held":
                wait = None  # for the message
                if self._state == "lost" and self._reacquire:
                    wait = every if self._acquired_again() else (every or 1.0) / 4
                continue
            self._asked = time.monotonic()
            try:
                until_ms = self._lease.renew()
                if self._place is not None:
                    self._place.grant(until_ms)
                self._until_ms, self._error, self._hopeless, wait = until_ms, None, False, every
                self._renewals += 1
            except LeaseError as error:
                self._lost(error)
                wait = 0 if self._reacquire else None
            except Exception as error:
                if self._error is None:
                    logger.warning(
                        "worker %d: its renewal failed, and is tried again: %s", self.grant.worker_id, _said(error)
                    )
                self._error, self._hopeless, wait = _said(error), True, (every or 0) / 4
            finally:
                self._asked = None
                self._answers += 1
        self._give_back()

    def _next_message(self, wait: float | None) -> str:
        """The first that was sent, within `wait` seconds; "close" before all others."""
        messages = []
        with suppress(queue.Empty):
            messages.append(self._messages.get(timeout=wait))
            while True:
                messages.append(self._messages.get_nowait())
        return max(messages, key="close".__eq__, default="")

    def _lost(self, error: LeaseError) -> None:
        self._error, self._hopeless = _said(error), not self._reacquire
        self._become("lost")
        self._losses += 1
        and_now = "another is acquired" if self._reacquire else "no more IDs are issued"
        logger.warning("worker %d was lost, and %s: %s", self.grant.worker_id, and_now, self._error)
        self._tell()

    def _acquired_again(self) -> bool:
        """Whether a worker id could be acquired in place of the lost one, and the generator issues from it."""
        self._asked = time.monotonic()
        before = self.grant.worker_id
        try:
            with suppress(Exception):  # it is another's; this tells the lease that it holds nothing any more
                self._lease.release(self._unused_from_ms if self._until_ms is None else self._until_ms)
            grant = self._acquired()
            place = None
            try:
                place = None if self._close_wanted else self._adopt(grant)
                if place is None or self._close_wanted:
                    raise LeaseError("the generator was closed meanwhile")
            except BaseException:
                self._lease.release(grant.from_ms if place is None else place.close())
                raise
        except Exception as error:
            if self._lease.renew_every == 0 and not isinstance(error, LeaseError) and not getattr(error, "errno", None):
                raise  # in the caller's thread: a signal handler's
            if _said(error) != self._error and not self._close_wanted:
                logger.warning("no worker id in place of %d yet: %s", before, _said(error))
            self._error, self._hopeless = _said(error), True
            return False
        finally:
            self._asked = None
        self.grant, self._error, self._hopeless, self._pid = grant, None, False, os.getpid()
        self._become("held")
        self._answers += 1
        logger.warning("worker %d issues as %d from now on", before, grant.worker_id)
        self._tell()
        return True

    def _become(self, state: str) -> None:
        self._state = state
        if self._close_wanted:  # whoever closes says so first, and sets the state after that
            self._state = "closed"

    def _tell(self) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(self.status)
        except (Exception, SystemExit):  # which would end the thread that renews, in silence
            logger.exception("the callback of a changed lease failed")

    def close(self) -> None:
        """Stops the generators of this worker and gives it back. A fork's child leaves that to its parent. Signal
        handlers and finalizers may call it where it is running already, in whatever thread.

        LeaseError where the store does not answer: it frees the worker id when the lease ends.
        """
        if self._pid != os.getpid():
            return
        self._close_wanted = True
        mine = (threading.get_ident(),)
        try:
            if self._turn.take(mine, PATIENCE_S):
                self._close()
            elif not self._turn.is_of(threading.get_ident()):  # else this thread has it, and closes behind the handler
                raise LeaseError(
                    f"worker {self.grant.worker_id} is given back by another thread, which has been at its lease for"
                    f" {PATIENCE_S} s"
                )
        finally:
            self._turn.end(mine)

    def _close(self) -> None:
        if self._done:
            return
        held, self._state = self._state == "held", "closed"
        if self._place is not None:
            self._unused_from_ms = self._place.close()
        if self._thread is None:
            self._give_back()
        else:
            self._messages.put("close")
            if self._thread is not threading.current_thread():  # which may collect a generator as garbage
                self._thread.join(PATIENCE_S)
                if self._thread.is_alive() and held:
                    self._done = True
                    raise LeaseError(
                        f"worker {self.grant.worker_id} was not given back, since its store has not answered for"
                        f" {PATIENCE_S} s; it will be free when the lease ends"
                    )
        self._done = True
        if self._release_error is not None and held:
            raise self._release_error

    def _give_back(self) -> None:
        try:
            self._lease.release(self._unused_from_ms)
        except Exception as error:
            self._release_error = error

    def forget(self) -> None:
        """close() where nobody hears of an error."""
        with suppress(Exception):
            self.close()

    def end(self) -> str:
        """How the lease ended, for the message of LeaseExpired where no end was granted."""
        return CLOSED if self._state == "closed" else f"was lost: {self._error or 'another holds it'}"

    def why(self) -> str:
        """What became of the renewals, for the message of LeaseExpired."""
        asked, error = self._asked, self._error
        thread = "" if self._thread is None else why_no_thread()
        if error is not None:
            what = "its renewal failed" if self._state == "held" or not self._reacquire else "it was lost"
            return f"; {what}: {error}{thread}"
        return (
            "" if asked is None else f"; its renewal has had no answer for {time.monotonic() - asked:.1f} s"
        ) + thread


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
