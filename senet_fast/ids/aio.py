"""IDs in asyncio: waiting leaves the event loop to others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class _Generator(Protocol):
    def try_next(self) -> int | None: ...
    def next_ids(self, n: int) -> npt.NDArray[np.int64]: ...


async def next_id(generator: _Generator) -> int:
    """The next ID; suspends only where the current tick's sequence is used up. The generator's timeout does not count:
    use asyncio.timeout().
    """
    while (number := generator.try_next()) is None:
        await asyncio.sleep(0.0005)
    return number


async def next_ids(generator: _Generator, n: int) -> npt.NDArray[np.int64]:
    """The next n IDs as a NumPy int64 array, drawn in a thread where the loop would have to wait for long."""
    return await asyncio.to_thread(generator.next_ids, n)
