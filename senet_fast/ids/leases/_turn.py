"""Whose turn it is, where a thread may meet itself."""

import os
import time


class Turn:
    """A lock that no signal handler, finalizer or thread that collects garbage can wait for in vain: a second call in
    the thread that has the turn is told so, and all that happens to it is one atomic step of a dict. A forked child has
    turns of its own: the thread that had one at the fork is not there.
    """

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int]] = {}  # by process

    def take(self, mine: tuple[int], patience_s: float) -> bool:
        """Whether the turn is `mine`, a new tuple of this thread's id."""
        deadline = time.monotonic() + patience_s
        while (whose := self._taken.setdefault(os.getpid(), mine)) is not mine:
            if whose == mine or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def end(self, mine: tuple[int]) -> None:
        if self._taken.get(os.getpid()) is mine:
            del self._taken[os.getpid()]

    def is_of(self, thread: int) -> bool:
        return self._taken.get(os.getpid()) == (thread,)
