"""What the generator tests share. Every wait here has an end, and says what it waited for."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import senet_fast
from senet_fast.ids import Grant, Layout, LeaseError, PythonSnowflake, Snowflake

Generator = type[Snowflake] | type[PythonSnowflake]

CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = Path(senet_fast.__file__).parents[1]  # of the package, which may be one that was built elsewhere
LIMIT_S = 60  # for what takes a second or two when the machine is idle


class FakeClock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Table:
    """A lease whose store is a variable, and which answers what the test says."""

    def __init__(
        self, grant: Grant, renewals: Callable[[], int] | None = None, *, renew_every: float | None = 0.005
    ) -> None:
        self.granted = grant
        self.renew_every = renew_every
        self.renewals = renewals
        self.released: list[int] = []

    def acquire(self, layout: Layout) -> Grant:
        return self.granted

    def renew(self) -> int:
        assert self.granted.until_ms is not None
        return self.renewals() if self.renewals else self.granted.until_ms

    def release(self, unused_from_ms: int) -> None:
        self.released.append(unused_from_ms)


class Losing(Table):
    """Hands out one grant after the other, or raises what stands in its place. `lost` and `down` are the test's."""

    def __init__(self, *grants: Grant | Exception, renew_every: float | None = 0.005) -> None:
        self.grants = iter(grants)
        self.lost = self.down = False
        self.acquired = 0
        first = next(self.grants)
        assert isinstance(first, Grant)
        super().__init__(first, self._renewed, renew_every=renew_every)

    def acquire(self, layout: Layout) -> Grant:
        self.acquired += 1
        if self.acquired > 1:
            given = next(self.grants)
            if isinstance(given, Exception):
                raise given
            self.granted, self.lost = given, False
        return self.granted

    def _renewed(self) -> int:
        if self.lost:
            raise LeaseError("another holds it")
        if self.down:
            raise ConnectionError("no route")
        return self.granted.until_ms or 0


class Forked:
    """A forked child that runs `call`."""

    def __init__(self, call: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            raised: type[BaseException] | None = None
            signal.alarm(LIMIT_S)
            try:
                call()
            except BaseException as error:
                raised = type(error)
            os.write(writer, pickle.dumps(raised))
            os._exit(0)
        os.close(writer)
        self._reader = reader

    def raised(self) -> type[BaseException] | None:
        """The class of what `call` raised; None if it returned."""
        with open(self._reader, "rb") as stream:
            if not select.select([stream], [], [], LIMIT_S + 5)[0]:
                os.kill(self.pid, signal.SIGKILL)
            said = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert code == 0, f"the forked child ended with {code}; {-signal.SIGALRM}: it took more than {LIMIT_S} s"
        return pickle.loads(said)  # type: ignore[no-any-return]


def in_child(call: Callable[[], object]) -> type[BaseException] | None:
    """The class of what `call` raises in a forked child; None if it returns."""
    return Forked(call).raised()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {LIMIT_S} s"
        time.sleep(0.001)


def in_threads(calls: Iterable[Callable[[], object]]) -> None:
    """Runs the calls at the same time and raises what the first one to fail raised."""
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    if errors:
        raise errors[0]


def join(thread: threading.Thread) -> None:
    thread.join(LIMIT_S)
    assert not thread.is_alive(), f"{thread} is still running after {LIMIT_S} s"


# SIGINT is ignored where the tests run in the background of a shell, and children inherit that. A program that lives
# too long tells stderr where it stands.
_BEGIN = """
import faulthandler, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
faulthandler.dump_traceback_later({limit}, exit=True)
"""


class Program:
    """Python source that runs in an interpreter of its own until the `with` block ends, and no longer than LIMIT_S."""

    def __init__(
        self, source: str, *arguments: object, cwd: Path = ROOT, env: dict[str, str] | None = None, options: str = ""
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe, which blocks the program when it is full
        command = [sys.executable, *options.split(), "-c", _BEGIN.format(limit=LIMIT_S) + textwrap.dedent(source)]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # with what it forks
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def line(self) -> str:
        """The next line that it prints, without its end."""
        assert self.process.stdout
        ready = select.select([self.process.stdout], [], [], LIMIT_S + 5)[0]
        line = self.process.stdout.readline().decode() if ready else ""
        assert line.endswith("\n"), f"the program printed {line!r}, then nothing:\n{self.errors()}"
        return line[:-1]

    def go(self) -> None:
        """Ends its sys.stdin.readline()."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    def ended(self) -> str:
        """What else it printed, once it has ended without an error."""
        try:
            said, _ = self.process.communicate(timeout=LIMIT_S + 5)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the program, or a child of it, did not end:\n{self.errors()}") from None
        code = self.process.returncode
        assert code == 0, f"the program ended with {code}:\n{self.errors()}"
        return said.decode()

    def kill(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        end = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 5000, max(0, end - 5000)).decode(errors="replace")


def run_program(source: str, *arguments: object, **options: object) -> str:
    """What `source` prints; it must end without an error."""
    with Program(source, *arguments, **options) as program:  # type: ignore[arg-type]
        return program.ended()
