"""ONNX Runtime and OpenVINO beside FusedSE, forward in float32: `python -m benchmarks.peers`.

Every measurement has a process of its own, because thread pools in one process slow each other down, and a copy of x
by NumPy (one thread) in it, as the yardstick that makes processes comparable. The peers get the graph that ONNX Runtime
runs fastest (ReduceMean and Gemm; GlobalAveragePool and 1x1 Conv take up to 3 times as long) and write into memory that
is bound once, as `squeeze_excite(..., out=y)` does; FusedSE makes a fresh output in every call.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import rows
from benchmarks.contenders import agree
from benchmarks.modes import Case
from benchmarks.runtimes import RUNTIMES, Array, Run, apart, installed
from benchmarks.shapes import of
from senet_fast.measure import interleave
from senet_fast.se import FusedSE, squeeze_excite
from senet_fast.text import microseconds, ratio, table

CASES = [Case(layer, batch) for batch in (1, 32) for layer in of("seresnet50")]
THREADS = 2


class Problem(NamedTuple):
    """Input [B, C, H, W] and weights [R, C], [R], [C, R], [C] of a case."""

    x: Array
    fc1_weight: Array
    fc1_bias: Array
    fc2_weight: Array
    fc2_bias: Array

    @classmethod
    def of(cls, case: Case) -> "Problem":
        random, (channels, hidden) = np.random.default_rng(0), (case.layer.channels, case.layer.hidden)
        shapes = [(case.batch, channels, *case.layer.spatial), (hidden, channels), (hidden,), (channels, hidden)]
        x, fc1, fc1_bias, fc2, fc2_bias = (random.standard_normal(s, np.float32) for s in [*shapes, (channels,)])
        return cls(x, fc1 * channels**-0.5, fc1_bias, fc2 * hidden**-0.5, fc2_bias)

    def expected(self) -> Array:
        hidden = np.maximum(self.x.mean((2, 3)) @ self.fc1_weight.T + self.fc1_bias, 0)
        z = hidden @ self.fc2_weight.T + self.fc2_bias
        return self.x / (1 + np.exp(-z))[:, :, None, None]


def fused(problem: Problem) -> Run:
    torch.set_num_threads(THREADS)
    hidden, channels = problem.fc1_weight.shape
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    module = FusedSE(channels, hidden_channels=hidden)
    module.load_state_dict(dict(zip(names, map(torch.from_numpy, problem[1:]), strict=True)))
    x, forward = torch.from_numpy(problem.x), torch.no_grad()(module)
    return lambda: forward(x)


def into(problem: Problem) -> Run:
    torch.set_num_threads(THREADS)
    x, *weights = map(torch.from_numpy, problem)
    y = torch.empty_like(x)
    return lambda: squeeze_excite(x, *weights, out=y)


def onnx_model(problem: Problem) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["squeezed"], keepdims=0),
        helper.make_node("Gemm", ["squeezed", "fc1_weight", "fc1_bias"], ["reduced"], transB=1),
        helper.make_node("Relu", ["reduced"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "fc2_weight", "fc2_bias"], ["z"], transB=1),
        helper.make_node("Sigmoid", ["z"], ["gate"]),
        helper.make_node("Unsqueeze", ["gate", "axes"], ["scale"]),
        helper.make_node("Mul", ["x", "scale"], ["y"]),
    ]
    constants = {"axes": np.array([2, 3]), **problem._asdict()}
    del constants["x"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, problem.x.shape) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "squeeze_excite", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


OURS: dict[str, Callable[[Problem], Run]] = {"FusedSE": fused, "out=y": into}


def measure_one(case: Case, name: str, seconds: float) -> dict[str, Any]:
    """Median seconds of a pass and of the copy, in this process."""
    problem = Problem.of(case)
    run = OURS[name](problem) if name in OURS else RUNTIMES[name](onnx_model(problem), problem.x, THREADS)
    y = np.zeros_like(problem.x)
    agree(f"{case.id}, {name}", torch.from_numpy(problem.expected()), torch.as_tensor(run()))
    times = interleave({"run": run, "copy": lambda: np.copyto(y, problem.x)}, seconds)
    return {**times, "believable": times.believable}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over processes; the ratio is taken within each."""
    return {
        "seconds": statistics.median(run["run"] for run in runs),
        "per_copy": statistics.median(run["run"] / run["copy"] for run in runs),
        "believable": all(run["believable"] for run in runs),
        "processes": runs,
    }


def measure(case: Case, seconds: float, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*OURS, *installed())}
    for _ in range(rounds):
        for name, done in runs.items():
            done.append(apart(measure_one, case, name, seconds))
    contenders = {name: summary(done) for name, done in runs.items()}
    return {"contenders": contenders, "believable": all(one["believable"] for one in contenders.values())}


def markdown(results: rows.Results) -> str:
    found = list(dict.fromkeys(name for row in results["rows"] for name in row["contenders"]))
    peers, own = [name for name in found if name not in OURS], list(OURS)[-1]
    lines = []
    for row in results["rows"]:
        of_name = row["contenders"]
        times = [microseconds(of_name[name]["seconds"]) for name in found]
        per_copy = {name: of_name[name]["per_copy"] if row["believable"] else None for name in found}
        against = [ratio(per_copy[name], per_copy[own]) for name in peers]
        lines.append([rows.name_of(row), *times, *(ratio(value, 1.0) for value in per_copy.values()), *against])
    absent = [name for name in RUNTIMES if name not in peers]
    processes = len(results["rows"][0]["contenders"][own]["processes"])
    notes = [
        f"{THREADS} threads. Medians over {processes} processes for each;",
        "a ratio of two contenders is that of their x/copy.",
        f"Not installed, left out: {', '.join(absent)}." if absent else "",
    ]
    heads = ["case", *(f"{name} us" for name in found), *(f"{name}/copy" for name in found)]
    return " ".join(filter(None, notes)) + "\n\n" + table([*heads, *(f"{name}/{own}" for name in peers)], lines)


def main() -> None:
    parser = rows.command("peers", __doc__, "1x256*", seconds=1.0)
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender and case (default: %(default)s)")
    options = parser.parse_args()
    taken = ("numpy", "onnx", *RUNTIMES)
    rows.run(options, CASES, lambda case: measure(case, options.seconds, options.rounds), markdown, *taken)


if __name__ == "__main__":
    main()
