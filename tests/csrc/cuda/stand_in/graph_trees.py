"""The warm-up of torch's cudagraph trees, torch.compile(mode="reduce-overhead"), on the stand-in.

It is torch's own code, with its check that nothing in the pool of a graph lives on that is no output. Inductor, which
wants Triton for this device, is left out: the backend is "cudagraphs". Recordings would need more of torch's allocator,
so each function is called once.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from unittest.mock import patch

import cuda_stand_in
import torch
from cuda_stand_in import device

Pool = tuple[int, int]


class Pools:
    """torch's pools of memory by the stand-in's, a new one of which begins each time."""

    def __init__(self) -> None:
        self.handles = count(1)
        self.numbers: defaultdict[Pool, list[int]] = defaultdict(list)
        self.checks = 0

    def handle(self) -> Pool:
        return (0, next(self.handles))

    def begin(self, index: int, pool: Pool) -> None:
        self.numbers[pool].append(device.begin_pool())

    def live(self, pool: Pool) -> set[int]:
        return {address for number in self.numbers[pool] for address in device.live(number)}

    def check(self, index: int, pool: Pool, storages: set[int]) -> bool:
        self.checks += 1
        return self.live(pool) == set(storages)

    def snapshot(self) -> list[dict[str, Any]]:
        blocks = [{"state": "active_allocated", "size": 1}]
        return [
            {"segment_pool_id": pool, "address": address, "blocks": blocks}
            for pool in self.numbers
            for address in self.live(pool)
        ]

    @contextlib.contextmanager
    def graph(
        self, cuda_graph: Any, pool: Pool, stream: torch.Stream, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        with cuda_stand_in.graph(cuda_graph, stream=stream):
            yield


@contextlib.contextmanager
def graph_trees() -> Iterator[Pools]:
    """Within it torch's trees can warm up; how often they checked a pool is in `checks`."""
    pools = Pools()
    of_torch_c: dict[str, Callable[..., object]] = {
        "_cuda_beginAllocateCurrentThreadToPool": pools.begin,
        "_cuda_endAllocateToPool": lambda index, pool: device.end_pool(),
        "_cuda_releasePool": lambda index, pool: None,
        "_cuda_checkPoolLiveAllocations": pools.check,
        "_cuda_clearCublasWorkspaces": lambda: None,
        "_cuda_get_conv_benchmark_empty_cache": lambda: False,
        "_cudnn_set_conv_benchmark_empty_cache": lambda empty: None,
        "_cuda_isHistoryEnabled": lambda: False,
    }
    of_torch_cuda = {"graph_pool_handle": pools.handle, "graph": pools.graph, "memory_snapshot": pools.snapshot}
    with contextlib.ExitStack() as stack:
        for name, value in of_torch_c.items():
            stack.enter_context(patch.object(torch._C, name, value, create=True))
        for name, value in of_torch_cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        try:
            yield pools
        finally:
            torch._dynamo.reset()
            torch.compiler.cudagraph_mark_step_begin()
