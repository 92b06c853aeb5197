"""IDs in asyncio: waiting leaves the event loop to others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from senet_fast.ids import _checks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from senet_fast.ids.layout import Layout

_SLICE_MS = 40
_SLICE_IDS = 1 << 20  # what takes a few milliseconds where nothing has to be waited for


class _Generator(Protocol):
    @property
    def layout(self) -> Layout: ...
    def try_next(self) -> int | None: ...
    def fill(self, out: Any) -> None: ...
    def try_fill(self, out: Any) -> int: ...


async def next_id(generator: _Generator) -> int:
    """The next ID; suspends only where the current tick's sequence is used up. The generator's timeout does not count:
    use asyncio.timeout().
    """
    while (number := generator.try_next()) is None:
        await asyncio.sleep(0.0005)
    return number


async def next_ids(generator: _Generator, n: int) -> npt.NDArray[np.int64]:
    """The next n IDs as a NumPy int64 array, drawn in a thread.

    A thread cannot be stopped. It draws what there is without waiting (of unused milliseconds, too), then at most what
    the layout issues in 40 ms or in one tick, and is sent again: cancelled, it draws no further slice.
    """
    numbers = _checks.new_array(n)
    if n:
        ticks = max(1, _SLICE_MS // generator.layout.tick_ms)
        size = min(ticks * (generator.layout.sequence.max + 1), _SLICE_IDS)
        drawn = await asyncio.to_thread(generator.try_fill, numbers)
        for begin in range(drawn, n, size):
            await asyncio.to_thread(generator.fill, numbers[begin : begin + size])
    return numbers
