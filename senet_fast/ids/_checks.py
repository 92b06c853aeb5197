"""Argument checks that `Snowflake` and `PythonSnowflake` share, so that both raise the same errors."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from senet_fast.ids._numbers import check_int
from senet_fast.ids.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    from senet_fast.ids.leases import Lease
    from senet_fast.ids.leases._held import Held

_NATIVE_INT64 = {order + code for order in ("", "@", "=", "<" if sys.byteorder == "little" else ">") for code in "lq"}
_LONGEST_WAIT_MS = 1 << 40

NOT_COPIED = (
    "a Snowflake generator cannot be copied or pickled: the copy would issue the same IDs again;"
    " construct one where it is needed, with a worker_id of its own"
)


def layout(value: Layout) -> Layout:
    if type(value) is not Layout:  # a subclass of equal fields would not find the word of its equal
        raise TypeError(f"layout is {value!r} ({type(value).__name__}); expected a Layout")
    return value


def worker_id(value: int | None, layout: Layout) -> int:
    if value is None and layout.worker.width == 0:
        return 0
    if value is None:
        raise TypeError(
            f"worker_id is missing; expected 0 <= worker_id <= {layout.worker.max}, unique to this generator"
        )
    return check_int("worker_id", value, 0, layout.worker.max, f" ({layout.worker.width} bits)")


def milliseconds(name: str, value: int) -> int:
    return check_int(name, value, 0, _LONGEST_WAIT_MS)


def on_fork(value: str) -> str:
    if value not in ("raise", "share"):
        raise ValueError(f"on_fork is {value!r}; expected 'raise' or 'share'")
    return value


def sequence_start(value: int | str, layout: Layout) -> tuple[int, int]:
    """The largest sequence at which a tick may start, a power of two less 1; and the seed, 0 for rolling starts.

    Three quarters of the tick's IDs remain, or with a sequence of 1 bit a half. Rolling starts are back at 0 after 1024
    IDs at the most: until then IDs at a steady interval may all fall on two of ten shards.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"sequence_start is {value!r} ({type(value).__name__}); expected 0, 'random' or 'rolling'")
    if value not in (0, "random", "rolling"):
        raise ValueError(f"sequence_start is {value!r}; expected 0, 'random' or 'rolling'")
    largest = max(2, min(1024, layout.sequence.max + 1 >> 2)) - 1
    return (largest if value else 0), (seed() if value == "random" else 0)


def seed() -> int:
    """Of one generator's random starts; never 0."""
    return int.from_bytes(os.urandom(8), "little") | 1


def file(value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    try:
        return os.fsdecode(os.fspath(value))
    except TypeError:
        raise TypeError(f"file is {value!r} ({type(value).__name__}); expected a path or None") from None


def borrowing(max_drift_ms: int, file: object, held: Held | None) -> None:
    """IDs of the future need a mark that outlives the process: another would issue them again after a restart."""
    if max_drift_ms and file is None and not (held and (held.grant.file or held.grant.until_ms is not None)):
        raise ValueError(
            f"max_drift_ms = {max_drift_ms}, and nothing remembers the last ID after a restart; expected file=, or a"
            " lease that keeps a mark, or max_drift_ms = 0"
        )


def lease(value: Lease | None, worker_id: int | None, file: object) -> None:
    if value is None:
        return
    for name, other in (("worker_id", worker_id), ("file", file)):
        if other is not None:
            raise TypeError(f"lease and {name} are both given; expected one, since a lease brings its own")
    for name in ("acquire", "renew", "release", "renew_every"):
        if isinstance(value, type) or not hasattr(value, name):
            raise TypeError(f"lease is {value!r}; expected a Lease such as senet_fast.ids.leases.LockFile()")


def on_lease_change(value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(
            f"on_lease_change is {value!r} ({type(value).__name__}); expected a callable that takes a LeaseStatus"
        )


def timeout(value: float | None) -> float:
    """Seconds; infinity stands for None."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout is {value!r} ({type(value).__name__}); expected a number of seconds or None")
    try:
        seconds = float(value)
    except OverflowError:
        bits = int(value).bit_length()
        raise ValueError(f"timeout is an int of {bits} bits; expected seconds that a float holds, or None") from None
    if not seconds >= 0:
        raise ValueError(f"timeout = {value}; expected timeout >= 0, in seconds")
    return seconds


def clock(value: Callable[[], int] | str | None) -> Callable[[], int] | str | None:
    if isinstance(value, str):
        if value not in ("coarse", "tsc"):
            raise ValueError(f"clock is {value!r}; expected 'coarse', 'tsc', a callable that returns ms, or None")
        return value
    if value is not None and not callable(value):
        raise TypeError(f"clock is {value!r} ({type(value).__name__}); expected a callable that returns ms, or None")
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"clock is {value!r} ({type(value).__name__}), which has no hash; expected a hashable callable, since"
            " generators share their state where their clocks are equal"
        ) from None
    return value


def clock_ms(value: Any) -> int:
    return check_int("clock()", value, 0, 1 << 62)


def count(value: int) -> int:
    return check_int("n", value, 0, sys.maxsize // 8)


def new_array(n: int) -> npt.NDArray[np.int64]:
    """An array of n, not filled; NumPy is imported here and nowhere else."""
    size = count(n)
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ModuleNotFoundError(
            "next_ids() returns a NumPy array, and NumPy, the extra senet-fast[ids], is not installed: run"
            " `pip install numpy`, or fill() an array.array('q')",
            name="numpy",
        ) from None
    return np.empty(size, np.int64)


def int64_view(out: Buffer | npt.NDArray[np.int64]) -> memoryview:
    """`out` as a flat, writable memoryview of native int64, or an error that says what is wrong with it."""
    try:
        view = memoryview(out)  # type: ignore[arg-type, unused-ignore]
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(f"out is {type(out).__name__}; expected a writable int64 buffer ({error})") from None
    if view.itemsize != 8 or view.format not in _NATIVE_INT64:
        raise TypeError(f"out has items of format {view.format!r}, {view.itemsize} bytes; expected native int64")
    if view.readonly:
        raise ValueError("out is read-only; expected a writable buffer")
    if not view.c_contiguous:
        raise ValueError(f"out has strides {view.strides} at shape {view.shape}; expected a C-contiguous buffer")
    if not view.nbytes:
        return memoryview(bytearray()).cast("q")
    data = view.cast("B")
    if ctypes.addressof(ctypes.c_byte.from_buffer(data)) % 8:
        raise ValueError("out does not start at a multiple of 8 bytes; expected an aligned buffer")
    return data.cast("q")
