"""Draw a million IDs one at a time and in bulk, fewer with the pure-Python twin beside it, and decode a few."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from senet_fast.ids import TWITTER, WIDE, PythonSnowflake, Snowflake

Generator = Snowflake | PythonSnowflake
Drawn = list[int] | npt.NDArray[np.int64]
LAYOUTS = {"twitter": TWITTER, "wide": WIDE}
CHUNKS = 10
TWIN_SHARE = 50  # the twin, a hundred times slower, draws this part of the IDs


@dataclass
class Draw:
    """One way to draw `count` IDs."""

    layout: str
    generator: str
    how: str
    seconds: float
    count: int
    increasing: bool


@dataclass
class Decoded:
    """One ID of the run, read back."""

    id: int
    time: str
    worker_id: int
    sequence: int


def one_at_a_time(generator: Generator, count: int) -> list[int]:
    next_id = generator.next_id
    return [next_id() for _ in range(count)]


def in_bulk(generator: Generator, count: int) -> npt.NDArray[np.int64]:
    return generator.next_ids(count)


def run(count: int) -> tuple[list[Draw], list[Decoded]]:
    """Every generator, way and layout in turn, in chunks; `count` is rounded down to whole chunks."""
    chunks = {"Snowflake": count // CHUNKS, "PythonSnowflake": count // CHUNKS // TWIN_SHARE}
    draws, decoded = [], []
    with tqdm(
        total=len(LAYOUTS) * CHUNKS * 2 * sum(chunks.values()), desc="IDs", unit="ID", unit_scale=True
    ) as progress:
        for name, layout in LAYOUTS.items():
            # A worker each: two generators of one worker would share their sequence, and the twin shares with nobody.
            ways: list[tuple[str, str, Callable[[Generator, int], Drawn], Generator]] = [
                ("PythonSnowflake", "one at a time", one_at_a_time, PythonSnowflake(1, layout)),
                ("PythonSnowflake", "in bulk", in_bulk, PythonSnowflake(2, layout)),
                ("Snowflake", "one at a time", one_at_a_time, Snowflake(3, layout)),
                ("Snowflake", "in bulk", in_bulk, Snowflake(4, layout)),
            ]
            for kind, how, draw, generator in ways:
                drawn, seconds, chunk = [], 0.0, chunks[kind]
                for _ in range(CHUNKS):
                    start = time.perf_counter()
                    ids = draw(generator, chunk)
                    seconds += time.perf_counter() - start
                    drawn.append(np.asarray(ids, np.int64))
                    progress.update(chunk)
                increasing = bool((np.diff(np.concatenate(drawn)) > 0).all())
                draws.append(Draw(name, kind, how, seconds, chunk * CHUNKS, increasing))
            if name == "twitter":
                last = drawn[-1]
                for value in (int(last[0]), int(last[len(last) // 2]), int(last[-1])):
                    fields = layout.decode(value)
                    time_text = fields.timestamp.isoformat(timespec="milliseconds")
                    decoded.append(Decoded(value, time_text, fields.worker_id, fields.sequence))
    return draws, decoded
