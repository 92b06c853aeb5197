"""What the graph of a fused network costs in ONNX Runtime, beside the plain one's: `python -m benchmarks.onnx`.

Both are what `torch.onnx.export` makes of them. They take turns in one process on one thread, whose processor time
counts: the differences are smaller than what other programs do to the clock on the wall.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import rows
from benchmarks.contenders import OWN, agree, pair
from benchmarks.modes import Mode, modes
from benchmarks.runtimes import Run, exported, onnx_runtime
from senet_fast.measure import interleave

NETWORKS = ("seresnet50", "mobilenetv3_large_100", "efficientnet_b0", "regnety_016", OWN)
MODES = modes(NETWORKS, (("forward", 1), ("forward", 8)), ("nchw",))
VERSIONS = ("eager", "fused")


def contender(network: nn.Module, x: Tensor) -> tuple[Run, tuple[int, int]]:
    """The network in ONNX Runtime, and the nodes of its graph as exported and as it runs."""
    import onnx

    program = exported(network, x)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        run = onnx_runtime(program.model_proto.SerializeToString(), x.numpy(), 1, optimized)
        graph = onnx.load(optimized, load_external_data=False).graph
    return run, (len(program.model.graph), len(graph.node))


def processor_time(call: Callable[[], object]) -> float:
    """The seconds that this thread worked in one call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(mode: Mode, seconds: float) -> dict[str, Any]:
    x = mode.input()
    networks, _ = pair(mode)
    with torch.no_grad():
        expected = networks["eager"](x)
    runs, nodes = {}, {}
    for name, network in networks.items():
        runs[name], nodes[name] = contender(network, x)
        agree(f"{mode.id}, {name}", expected, torch.from_numpy(runs[name]()))
    return {"seconds": interleave(runs, seconds, calls=1, timed=processor_time), "nodes": nodes}


def markdown(results: rows.Results) -> str:
    nodes = {
        f"{name} nodes, {when}": lambda row, name=name, place=place: row["nodes"][name][place]
        for place, when in enumerate(("exported", "optimized"))
        for name in VERSIONS
    }
    note = "Milliseconds of one thread's processor time."
    return f"{note}\n\n{rows.comparison(results['rows'], VERSIONS, [VERSIONS], more=nodes)}"


def main() -> None:
    options = rows.command("onnx", __doc__, "seresnet50 8", seconds=10.0).parse_args()
    taken = ("timm", "onnx", "onnxruntime")
    rows.run(options, MODES, lambda mode: measure(mode, options.seconds), markdown, *taken)


if __name__ == "__main__":
    main()
