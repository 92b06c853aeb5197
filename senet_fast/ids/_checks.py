"""Argument checks that `Snowflake` and `PythonSnowflake` share, so that both raise the same errors."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from senet_fast.ids.layout import Layout, check_int

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

_NATIVE_INT64 = {order + code for order in ("", "@", "=", "<" if sys.byteorder == "little" else ">") for code in "lq"}
_LONGEST_WAIT_MS = 1 << 40

NOT_COPIED = (
    "a Snowflake generator cannot be copied or pickled: the copy would issue the same IDs again;"
    " construct one where it is needed, with a worker_id of its own"
)


def worker_id(value: int | None, layout: Layout) -> int:
    if type(layout) is not Layout:  # a subclass of equal fields would not find the word of its equal
        raise TypeError(f"layout is {layout!r} ({type(layout).__name__}); expected a Layout")
    if value is None and layout.worker.width == 0:
        return 0
    if value is None:
        raise TypeError(
            f"worker_id is missing; expected 0 <= worker_id <= {layout.worker.max}, unique to this generator"
        )
    return check_int("worker_id", value, 0, layout.worker.max, f" ({layout.worker.width} bits)")


def max_backward_ms(value: int) -> int:
    return check_int("max_backward_ms", value, 0, _LONGEST_WAIT_MS)


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


def clock(value: Callable[[], int] | None) -> Callable[[], int] | None:
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
