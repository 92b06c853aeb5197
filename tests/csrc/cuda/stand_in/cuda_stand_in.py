"""The stand-in under torch's names, and what tests ask of it. Import it before torch: `pytest -p cuda_stand_in`.

`senet_fast.se` then loads the op library with CUDA of build/stand_in; `make stand-in` makes that. After each test a
fixture fails it where a rule of the device was broken (device.h says which).
"""

import contextlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
BUILD = ROOT / "build/stand_in"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

if "torch" in sys.modules:
    raise ImportError("cuda_stand_in must be imported before torch, which asks only once whether there is CUDA")


def built(name: str) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location(name, BUILD / f"{name.rpartition('.')[2]}{SUFFIX}")
    assert spec
    return spec


class OpLibrary:
    """Finds the op library with CUDA in the place of the checkout's."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return built(name) if name == "senet_fast.se._C" else None


sys.meta_path.insert(0, OpLibrary)  # type: ignore[arg-type]
spec = built("_stand_in")
device: Any = importlib.util.module_from_spec(spec)
assert spec.loader
spec.loader.exec_module(device)

import torch  # noqa: E402

settings = device.settings()
sys.path.append(str(ROOT / "tests/se"))  # se_testing, for tests that are not there


# ---- torch.cuda, as far as the tests ask ----


def exchange_device(index: int) -> int:
    before: int = device.current_device()
    if index >= 0:
        device.set_device(index)
    return before


def synchronize(of: object = None) -> None:
    for index in range(device.devices):
        device.synchronize(index)


@contextlib.contextmanager
def stream(current: torch.Stream) -> Iterator[None]:
    with current:
        yield


class CUDAGraph:
    """What was enqueued while it was recorded."""

    made: Any = None

    def replay(self) -> None:
        self.made.replay()

    def __del__(self) -> None:
        if self.made:
            self.made.destroy()

    @property
    def kinds(self) -> list[str]:
        return list(self.made.kinds)


RECORDED: dict[int, torch.Stream] = {}  # of each device: torch, too, records all graphs on one stream


@contextlib.contextmanager
def graph(cuda_graph: CUDAGraph, stream: torch.Stream | None = None) -> Iterator[None]:
    synchronize()
    index = device.current_device()
    if stream is None and index not in RECORDED:
        RECORDED[index] = torch.Stream(device="cuda")
    with stream or RECORDED[index]:
        cuda_graph.made = device.begin_capture()
        try:
            yield
        finally:
            device.end_capture()


class Pool:
    """Memory that torch takes for the current stream, as in the warm-up of torch.compile(mode="reduce-overhead")."""

    def __enter__(self) -> "Pool":
        self.number = device.begin_pool()
        return self

    def __exit__(self, *error: object) -> None:
        device.end_pool()

    def live(self) -> list[int]:
        """Addresses of what is not released."""
        return sorted(device.live(self.number))


PROPERTIES = SimpleNamespace(
    name="stand-in",
    total_memory=0,  # less than any test needs that asks
    major=9,
    minor=0,
    multi_processor_count=4,
    max_threads_per_multi_processor=2048,
    warp_size=32,
)

FUNCTIONS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: device.devices,
    "current_device": device.current_device,
    "set_device": lambda index: device.set_device(torch.device(index).index if isinstance(index, str) else index),
    "get_device_capability": lambda of=None: (PROPERTIES.major, PROPERTIES.minor),
    "get_device_properties": lambda of=None: PROPERTIES,
    "synchronize": synchronize,
    "Stream": lambda device=None: torch.Stream(device=device or "cuda"),
    "stream": stream,
    "current_stream": lambda of=None: torch.accelerator.current_stream(),
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "_initialized": True,
    "_exchange_device": exchange_device,
    "_maybe_exchange_device": lambda index: exchange_device(index),  # Dynamo wants another function
    "default_generators": (torch.default_generator,) * device.devices,
}
for name, value in FUNCTIONS.items():
    setattr(torch.cuda, name, value)
OF_TORCH_C: dict[str, Any] = {
    "_cuda_getDevice": device.current_device,
    "_cuda_setDevice": device.set_device,
    "_cuda_exchangeDevice": exchange_device,
    "_cuda_maybeExchangeDevice": exchange_device,
    "_cuda_getCurrentRawStream": lambda index: 0,
}
for name, value in OF_TORCH_C.items():
    setattr(torch._C, name, value)


# ---- for tests ----


@pytest.fixture(autouse=True)
def stand_in_rules() -> Iterator[None]:
    """Fails a test that breaks a rule of the device, with the faults."""
    device.take_faults()
    errors = device.errors_left()
    yield
    synchronize()
    settings.reset()
    device.set_device(0)
    faults = device.take_faults()
    if device.errors_left() > errors:  # torch would raise it at its next launch
        faults.append("an error of the CUDA runtime is left behind")
    if faults:
        pytest.fail("\n".join(dict.fromkeys(faults)), pytrace=False)
