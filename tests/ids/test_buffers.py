import array
import ctypes

import numpy as np
import pytest
from ids_testing import FakeClock, Generator

from senet_fast.ids import TWITTER


def read_only() -> np.ndarray:
    out = np.full(9, -1)
    out.flags.writeable = False
    return out


def misaligned() -> np.ndarray:
    return np.full(100, 255, np.uint8)[1:81].view(np.int64)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (read_only(), ValueError, "out is read-only"),
        (bytes(16), TypeError, "out has items of format 'B', 1 bytes; expected native int64"),
        (memoryview(bytes(16)).cast("q"), ValueError, "out is read-only"),
        (np.full(9, 1, np.uint64), TypeError, "out has items of format 'L'"),
        (np.full(9, -1, np.int32), TypeError, "out has items of format 'i', 4 bytes"),
        (np.full(9, -1, np.float64), TypeError, "out has items of format 'd'"),
        (np.full(9, -1, ">i8"), TypeError, "out has items of format '>"),
        (np.full(9, "NaT", "datetime64[ms]"), TypeError, "out is ndarray; expected a writable int64 buffer"),
        (np.full(9, -1)[::2], ValueError, r"out has strides \(16,\) at shape \(5,\); expected a C-contiguous"),
        (np.full((3, 3), -1).T, ValueError, "out has strides"),
        (np.full((3, 3), -1)[:, :2], ValueError, "out has strides"),
        (np.broadcast_to(np.array([-1]), 9), ValueError, "out "),
        (misaligned(), ValueError, "out does not start at a multiple of 8 bytes"),
        ([-1, -1], TypeError, "out is list; expected a writable int64 buffer"),
        (None, TypeError, "out is NoneType"),
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_refused(generator_class: Generator, worker_id: int, out: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generator_class(worker_id).fill(out)  # type: ignore[arg-type]
    if isinstance(out, np.ndarray) and out.dtype.kind == "i":
        assert (out == -1).all()


@pytest.mark.parametrize(
    "out",
    [
        np.full(300, -1),
        np.full((3, 4, 5), -1),
        np.full((0, 3), -1),
        np.full((), -1),
        np.full(9, -1)[3:],
        np.full(9, -1, np.longlong),
        np.full((5, 2), -1)[2:4],
        array.array("q", [-1] * 20),
        (ctypes.c_int64 * 20)(*[-1] * 20),
        memoryview(bytearray(b"\xff" * 160)).cast("q"),
        memoryview(bytearray(b"\xff" * 160)).cast("q")[10:],
    ],
    ids=lambda out: type(out).__name__,
)
def test_filled(generator_class: Generator, worker_id: int, out: object) -> None:
    assert generator_class(worker_id).fill(out) is None  # type: ignore[arg-type]
    numbers = np.asarray(out).ravel()
    assert (np.diff(numbers) > 0).all()
    assert (TWITTER.decode(np.array(numbers, np.int64)).worker_id == worker_id).all()


def test_neighbours_are_untouched(generator_class: Generator, worker_id: int) -> None:
    out = np.full(1000, -1)
    generator_class(worker_id).fill(out[100:900])
    assert (out[:100] == -1).all()
    assert (out[900:] == -1).all()
    assert (out[100:900] > 0).all()


@pytest.mark.parametrize("n", [9, 5000])  # with and without the GIL
def test_try_fill(generator_class: Generator, worker_id: int, fake_clock: FakeClock, n: int) -> None:
    """What there is without waiting; of a claim that may begin in unused milliseconds, all of it."""
    generator = generator_class(worker_id, clock=fake_clock, max_lag_ms=2)
    out = np.full(n, -1)
    assert generator.try_fill(out[:0]) == 0
    assert generator.try_fill(out) == min(n, 4096)
    assert generator.try_fill(out) == (9 if n == 9 else 0)
    assert (np.diff(out[:4096]) > 0).all()
    assert (out[4096:] == -1).all()
    fake_clock.now_ms += 10
    assert generator.try_fill(np.full(n, -1)) == n
    with pytest.raises(TypeError, match="out is NoneType"):
        generator.try_fill(None)  # type: ignore[arg-type]
