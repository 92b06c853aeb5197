"""What SE costs whole networks, and what is left of it: `python -m benchmarks.tax`.

Networks of timm and torchvision at inference, each beside its twin whose SE blocks do nothing ("no SE"): eager, fused,
torch.compile with frozen weights, that of the fused network, and, in processes of their own, other runtimes. Random
weights and BatchNorm statistics from one batch, so that activations keep their size; channels_last.
"""

from typing import Any

import torch

from benchmarks import rows
from benchmarks.contenders import check, in_turns, pair, passing, without_se
from benchmarks.modes import FORWARDS, Mode, modes
from benchmarks.runtimes import RUNTIMES, Array, apart, exported, installed
from senet_fast.measure import frozen, interleave

NETWORKS = (
    *("seresnet50", "seresnext50_32x4d", "efficientnet_b0", "mobilenetv3_large_100", "regnety_016"),
    *("mobilenet_v3_large", "regnet_y_400mf"),
)
NONE = "no SE"
OURS = ("eager", "fused", f"eager, {NONE}", "frozen", "frozen + fused", f"frozen, {NONE}")
RATIOS = [
    *(("eager", "fused"), ("fused", f"eager, {NONE}")),
    *(("frozen", "frozen + fused"), ("frozen", f"frozen, {NONE}"), ("frozen + fused", f"frozen, {NONE}")),
]
MODES = modes(NETWORKS, FORWARDS, ("nhwc",), ("fp32", "bf16"))


def foreign(runtime: str, graphs: dict[str, bytes], x: Array, threads: int, seconds: float) -> dict[str, float]:
    """Seconds of each graph in a runtime; for a process of its own."""
    make = RUNTIMES[runtime]
    return interleave({name: make(graph, x, threads) for name, graph in graphs.items()}, seconds)


def measure(mode: Mode, seconds: float) -> dict[str, Any]:
    networks, blocks = pair(mode)
    x, none = mode.input(), f"eager, {NONE}"
    difference = check(mode, networks["eager"], networks["fused"], x)
    networks[none] = without_se(networks["eager"])
    calls = {name: passing(network, mode.kind, x) for name, network in networks.items()}
    for name, of in (("frozen", "eager"), ("frozen + fused", "fused"), (f"frozen, {NONE}", none)):
        calls[name] = passing(frozen(networks[of], x), mode.kind, x)
    taken = in_turns(calls, seconds)
    for runtime in installed() if mode.dtype == "fp32" else ():
        graphs = {runtime: networks["eager"], f"{runtime}, {NONE}": networks[none]}
        made = {name: exported(network, x).model_proto.SerializeToString() for name, network in graphs.items()}
        taken["seconds"] |= apart(foreign, runtime, made, x.numpy(), torch.get_num_threads(), seconds / 3)
    return {"blocks": blocks, **taken, "difference": difference}


def markdown(results: rows.Results) -> str:
    others = [name for name in RUNTIMES if any(name in row["seconds"] for row in results["rows"])]
    versions = [*OURS, *(version for name in others for version in (name, f"{name}, {NONE}"))]
    return rows.comparison(results["rows"], versions, [*RATIOS, *((name, f"{name}, {NONE}") for name in others)])


def main() -> None:
    options = rows.command("tax", __doc__, "seresnet50 fp32", seconds=30.0).parse_args()
    taken = ("timm", "torchvision", "onnxruntime", "openvino")
    rows.run(options, MODES, lambda mode: measure(mode, options.seconds), markdown, *taken)


if __name__ == "__main__":
    main()
