"""Who closes, or acquires again, a lease at a time."""

from __future__ import annotations

import time


class Turn:
    """A lock that no signal handler, finalizer or thread that collects garbage can wait for in vain: a second call in
    the thread that has the turn is told so, and all that happens to it is one atomic step of a dict.
    """

    def __init__(self) -> None:
        self._taken: dict[str, tuple[int]] = {}

    def take(self, mine: tuple[int], patience_s: float) -> bool:
        """Whether the turn is `mine`, a new tuple of this thread's id."""
        deadline = time.monotonic() + patience_s
        while (whose := self._taken.setdefault("turn", mine)) is not mine:
            if whose == mine or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def end(self, mine: tuple[int]) -> None:
        if self._taken.get("turn") is mine:
            del self._taken["turn"]

    def is_of(self, thread: int) -> bool:
        return self._taken.get("turn") == (thread,)
