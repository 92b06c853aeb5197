"""What the generator tests share."""

import os
import pickle
from collections.abc import Callable

from senet_fast.ids import PythonSnowflake, Snowflake

Generator = type[Snowflake] | type[PythonSnowflake]


class FakeClock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def in_child(call: Callable[[], object], fork: Callable[[], int] = os.fork) -> type[BaseException] | None:
    """The class of what `call` raises in a forked child; None if it returns."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        raised: type[BaseException] | None = None
        try:
            call()
        except BaseException as error:
            raised = type(error)
        os.write(writer, pickle.dumps(raised))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        said = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pickle.loads(said)  # type: ignore[no-any-return]
