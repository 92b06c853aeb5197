"""Why something is left as it is: one kind of refusal, which the report and the log tell of."""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any


class Refused(Exception):
    """What the op can not take the place of.

    ``stage``: what was looked at when this came up; ``reason``: for people; ``node``: of the graph that was looked at.
    ``near``: it squeezes x and gates it, so that its owner wants to know. ``pools``: it may. What somebody's own code
    raised is the ``__cause__``.
    """

    def __init__(self, stage: str, reason: str, *, node: Any = "", near: bool = False) -> None:
        super().__init__(reason)
        self.stage, self.near, self.pools = stage, near, near
        self.node = str(node)

    def within(self, where: str) -> "Refused":
        """The same, said of a part of something."""
        refused = Refused(self.stage, f"{where}: {self}" if str(self) else where, node=self.node, near=True)
        refused.__cause__ = self.__cause__
        return refused

    @property
    def details(self) -> str:
        """The reason with stage, node and exception, in one line."""
        at = f" at {self.node}" if self.node else ""
        caused = f" ({self.exception})" if self.exception and self.exception not in str(self) else ""
        return f"{self}{caused} [{self.stage}{at}]"

    @property
    def exception(self) -> str:
        """What was raised, in one line; "" if nothing was."""
        error = self.__cause__
        return "" if error is None else f"{type(error).__name__}: {first_line(error)}"


LOG = logging.getLogger("senet_fast.fuse")
_noted: ContextVar[list[Refused]] = ContextVar("_noted")


def note(refused: Refused, cause: Exception | None = None) -> None:
    """Tell whoever listens (:func:`noted`) of ``refused``, which is no reason to stop."""
    refused.__cause__ = cause or refused.__cause__
    for error in (refused, refused.__cause__):
        if error is not None:
            error.__traceback__ = error.__context__ = None  # frames would keep copies of modules alive
    if (here := _noted.get(None)) is not None:
        here.append(refused)


@contextlib.contextmanager
def noted() -> Iterator[list[Refused]]:
    """A list of all that is noted in this context."""
    refusals: list[Refused] = []
    token = _noted.set(refusals)
    try:
        yield refusals
    finally:
        _noted.reset(token)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
