"""What the graph of a fused network costs in ONNX Runtime, beside the plain one's: `python -m benchmarks.onnx`.

Both are what `torch.onnx.export` makes of them. They take turns in one process on one thread, whose processor time
counts: the differences are smaller than what other programs do to the clock on the wall. The JSON file keeps the rows
of other networks.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import fusing
from benchmarks.fusing import PIXELS, TOLERANCE
from benchmarks.report import publish
from benchmarks.rows import row_options, selected, take
from senet_fast import fuse
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import calibrate, relative_difference
from senet_fast.demo.text import ratio, table
from senet_fast.models import create
from senet_fast.se import SEBlock

MARK = "onnx table: python -m benchmarks.onnx"
OWN = "senet_fast.resnet50"  # se=SEBlock, and se=True exported with gradients off: BatchNorm in the op
NETWORKS = ("seresnet50", "mobilenetv3_large_100", "efficientnet_b0", "regnety_016", OWN)


class Mode(NamedTuple):
    """One row."""

    network: str
    batch: int

    @property
    def id(self) -> str:
        return f"{self.network} {self.batch}"


MODES = [Mode(network, batch) for network in NETWORKS for batch in (1, 8)]


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    """The network and its fused copy, with the same weights, in eval mode."""
    if name != OWN:
        plain = fusing.create(fusing.Mode(name, "forward", 1, "nchw"))
        fused = copy.deepcopy(plain)
        fuse(fused)
        return plain, fused
    torch.manual_seed(0)
    plain = create("resnet50", se=SEBlock)
    with torch.no_grad():
        calibrate(plain, torch.randn(8, 3, PIXELS, PIXELS))
    fused = create("resnet50", se=True)
    fused.load_state_dict(plain.state_dict())
    return plain.eval(), fused.eval()


class Contender:
    """A network in ONNX Runtime. `nodes`: of its graph as exported and as it runs."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        import onnx
        import onnxruntime

        with torch.no_grad():
            program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            model = program.model_proto.SerializeToString()
            self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
            self.nodes = (len(program.model.graph), len(onnx.load(optimized, load_external_data=False).graph.node))
        self.feed = {self.session.get_inputs()[0].name: x.numpy()}

    def __call__(self) -> Any:
        return self.session.run(None, self.feed)[0]


def processor_time(call: Callable[[], object]) -> float:
    """The seconds that this thread worked in one call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(mode: Mode, seconds: float) -> dict[str, Any]:
    """Median seconds of both graphs, the sizes of these, and how far their outputs are from eager's."""
    x = torch.randn(mode.batch, 3, PIXELS, PIXELS)
    plain, fused = networks(mode.network)
    contenders = {"plain": Contender(plain, x), "fused": Contender(fused, x)}
    with torch.no_grad():
        expected = plain(x)
    differences = [relative_difference(expected, torch.from_numpy(run())) for run in contenders.values()]
    if not max(differences) <= TOLERANCE:
        raise AssertionError(f"{mode.id}: outputs differ from eager's by {differences}")
    times = interleave(contenders, seconds, calls=1, timed=processor_time)
    nodes = {name: run.nodes for name, run in contenders.items()}
    return {"seconds": times, "nodes": nodes}


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        plain, fused = row["seconds"]["plain"], row["seconds"]["fused"]
        times = [f"{seconds * 1e3:.2f}" for seconds in (plain, fused)]
        nodes = [row["nodes"][version][when] for when in (0, 1) for version in ("plain", "fused")]
        rows.append([row["mode"], *times, ratio(plain, fused), *nodes])
    head = ["network, batch", "plain ms", "fused ms", "plain/fused"]
    head += [f"{name} nodes, {when}" for when in ("exported", "optimized") for name in ("plain", "fused")]
    packages = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "timm", "onnx", "onnxruntime"))
    return f"{results['date'][:10]}, {results['machine']['cpu']}, one thread; {packages}.\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="timing per mode, shared by both graphs")
    row_options(parser, "onnx", "seresnet50 8")
    options = parser.parse_args()
    modes = selected(options, MODES)
    where = surroundings("timm", "onnx", "onnxruntime")
    results = take(options, MODES, modes, where, lambda mode: measure(mode, options.seconds))
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()
