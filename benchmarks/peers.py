"""ONNX Runtime and OpenVINO beside FusedSE, forward in float32: `python -m benchmarks.peers`.

Every measurement has a process of its own, because thread pools in one process slow each other down, and a copy of x
by NumPy (one thread) in it, as the yardstick that makes processes comparable. The peers get the graph that ONNX Runtime
runs fastest (ReduceMean and Gemm; GlobalAveragePool and 1x1 Conv take up to 3 times as long) and write into memory that
is bound once, as `squeeze_excite(..., out=y)` does; FusedSE makes a fresh output in every call.
"""

import argparse
import importlib.util
import io
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks.report import add_options, publish, save
from benchmarks.shapes import Case, of
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.text import microseconds, ratio, table
from senet_fast.se import FusedSE, squeeze_excite

Array = npt.NDArray[np.float32]
Run = Callable[[], Any]  # one pass; returns y
MARK = "peers table: python -m benchmarks.peers"
CASES = [Case(layer, batch) for batch in (1, 32) for layer in of("seresnet50")]
THREADS = 2
TOLERANCE = 1e-4


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


def onnx_runtime(problem: Problem) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(onnx_model(problem), options, ["CPUExecutionProvider"])
    binding, y = session.io_binding(), np.zeros_like(problem.x)
    x = onnxruntime.OrtValue.ortvalue_from_numpy(problem.x)
    binding.bind_ortvalue_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run() -> Array:
        session.run_with_iobinding(binding)
        return y

    return run


def open_vino(problem: Problem) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(io.BytesIO(onnx_model(problem))), "CPU", settings)
    request, y = model.create_infer_request(), np.zeros_like(problem.x)
    request.set_input_tensor(openvino.Tensor(problem.x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(y, shared_memory=True))

    def run() -> Array:
        request.infer(share_outputs=True)  # else it would copy y once more
        return y

    return run


OURS: dict[str, Callable[[Problem], Run]] = {"FusedSE": fused, "out=y": into}
PEERS: dict[str, Callable[[Problem], Run]] = {"onnxruntime": onnx_runtime, "openvino": open_vino}


def measure(case: Case, name: str, seconds: float) -> dict[str, Any]:
    """Median seconds of a pass and of the copy, in this process."""
    problem = Problem.of(case)
    run, y = (OURS | PEERS)[name](problem), np.zeros_like(problem.x)
    expected = problem.expected()
    difference = float(np.abs(np.asarray(run()) - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise AssertionError(f"{case.id}: the output of {name} differs by {difference:.1e}")
    times = interleave({"run": run, "copy": lambda: np.copyto(y, problem.x)}, seconds)
    return {**times, "believable": times.believable}


def apart(case: Case, name: str, seconds: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, case, name, seconds).result()


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over processes; the ratio is taken within each."""
    return {
        "seconds": statistics.median(run["run"] for run in runs),
        "per_copy": statistics.median(run["run"] / run["copy"] for run in runs),
        "believable": all(run["believable"] for run in runs),
        "processes": runs,
    }


def markdown(results: dict[str, Any]) -> str:
    peers = results["peers"]
    names, own = [*OURS, *peers], list(OURS)[-1]
    head = ["case", *(f"{name} us" for name in names), *(f"{name}/copy" for name in names)]
    rows = []
    for row in results["rows"]:
        of_name = row["contenders"]
        believable = all(one["believable"] for one in of_name.values())
        times = [microseconds(one["seconds"]) for one in of_name.values()]
        ratios = [f"{one['per_copy']:.2f}" if believable else "-" for one in of_name.values()]
        per_copy = {name: one["per_copy"] if believable else None for name, one in of_name.items()}
        against = [ratio(per_copy[name], per_copy[own]) for name in peers]
        rows.append([row["case"] + ("" if believable else " (busy)"), *times, *ratios, *against])
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", *peers))
    absent = [name for name in PEERS if name not in peers]
    notes = [
        f"{results['date'][:10]}, {results['machine']['cpu']}, {THREADS} threads; {versions}.",
        f"Not installed, left out: {', '.join(absent)}." if absent else "",
        f"Medians over {results['rounds']} processes for each; a ratio of two contenders is that of their x/copy.",
    ]
    return " ".join(filter(None, notes)) + "\n\n" + table([*head, *(f"{name}/{own}" for name in peers)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="timing per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender and case")
    add_options(parser, "peers")
    options = parser.parse_args()
    with_onnx = importlib.util.find_spec("onnx") is not None
    peers = [name for name in PEERS if with_onnx and importlib.util.find_spec(name)]
    results: dict[str, Any] = {**surroundings("numpy", "onnx", *peers), "rounds": options.rounds}
    results |= {"peers": peers, "rows": []}
    progress = tqdm(CASES)
    for case in progress:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*OURS, *peers)}
        for _ in range(options.rounds):
            for name, done in runs.items():
                progress.set_description(f"{case.id}, {name}")
                done.append(apart(case, name, options.seconds))
        contenders = {name: summary(done) for name, done in runs.items()}
        results["rows"].append({"case": case.id, "contenders": contenders})
        save(options, results)
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()
