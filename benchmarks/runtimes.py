"""ONNX Runtime and OpenVINO: a graph on a number of threads, bound once to its input and to memory for its output."""

import importlib.util
import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float32]
Run = Callable[[], Any]  # one pass; returns the output


@torch.no_grad()
def exported(network: nn.Module, x: Tensor) -> torch.onnx.ONNXProgram:
    """What `torch.onnx.export` makes of a network: `model_proto.SerializeToString()` is what the runtimes here take."""
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    assert program is not None
    return program


def onnx_runtime(model: bytes, x: Array, threads: int, optimized: Path | None = None) -> Run:
    """`optimized`: where ONNX Runtime leaves the graph that it runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    binding, y = session.io_binding(), np.zeros(target.shape, np.float32)
    binding.bind_ortvalue_input(source.name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output(target.name, "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run() -> Array:
        session.run_with_iobinding(binding)
        return y

    return run


def open_vino(model: bytes, x: Array, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)
    request, y = compiled.create_infer_request(), np.zeros(tuple(compiled.output(0).shape), np.float32)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(y, shared_memory=True))

    def run() -> Array:
        request.infer(share_outputs=True)  # else it would copy y once more
        return y

    return run


RUNTIMES: dict[str, Callable[[bytes, Array, int], Run]] = {"onnxruntime": onnx_runtime, "openvino": open_vino}


def installed() -> list[str]:
    """The runtimes that are there, with the package that makes graphs."""
    return [name for name in RUNTIMES if importlib.util.find_spec("onnx") and importlib.util.find_spec(name)]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own: thread pools in one slow each other down."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
