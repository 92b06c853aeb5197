"""How work is timed on a GPU: in CUDA graphs, which take turns, by events. On a CPU a rehearsal of the same steps."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from senet_fast.measure import interleave

Body = Callable[[], Any]
Prepare = Callable[[], Sequence[Body]]  # what is done once, such as the forward in front of a backward
BLOCK_SECONDS = 2e-3  # of replays between two events


class Clock(Protocol):
    device: str
    l2_bytes: int
    rounds: int  # of taking turns

    def record(self, prepare: Prepare) -> Body:
        """One call that does all bodies in turn; their results stay, so that none takes the other's place."""

    def seconds(self, call: Body, times: int) -> float:
        """Of one call, of `times` of them."""


class GpuClock:
    device = "cuda"
    rounds = 15

    def __init__(self) -> None:
        self.l2_bytes = torch.cuda.get_device_properties().L2_cache_size

    def record(self, prepare: Prepare) -> Body:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # On the stream of the recording: autograd runs a backward on the stream of its forward.
        with torch.cuda.stream(stream):
            bodies = prepare()
            for _ in range(3):  # compiles, chooses algorithms, makes workspaces: outside of the graph
                for body in bodies:
                    body()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = [body() for body in bodies]

        def replay(*, kept: Any = (bodies, kept)) -> None:
            graph.replay()

        return replay

    def seconds(self, call: Body, times: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / times


class Rehearsal:
    """The steps of GpuClock on a CPU, where there is nothing to record. Its times mean nothing."""

    device = "cpu"
    l2_bytes = 1 << 10
    rounds = 1

    def record(self, prepare: Prepare) -> Body:
        bodies = prepare()
        return lambda: [body() for body in bodies]

    def seconds(self, call: Body, times: int) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


def take_turns(clock: Clock, calls: Mapping[str, Body]) -> dict[str, float]:
    """Median seconds of each. Blocks of about BLOCK_SECONDS take turns; every other round runs in reverse order."""
    blocks = {}
    for name, call in calls.items():
        clock.seconds(call, 2)  # the GPU's clock rate goes up
        times = max(1, round(BLOCK_SECONDS / max(clock.seconds(call, 3), 1e-7)))
        blocks[name] = partial(clock.seconds, call, times)
    return dict(interleave(blocks, 0, clock.rounds, calls=1, timed=lambda block: block()))


@contextmanager
def noted(problems: dict[str, str], name: str) -> Iterator[None]:
    """What goes wrong with one contender is said in the table; the others are still measured."""
    try:
        yield
    except Exception as error:
        problems[name] = f"{type(error).__name__}: {error}".splitlines()[0]
