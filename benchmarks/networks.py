"""Whole networks as they are, fused, and without SE: `python -m benchmarks.networks`.

Networks of timm and torchvision with random weights and BatchNorm statistics from one batch, so that activations keep
their size; the versions of a network take turns in one process.
"""

from typing import Any

from benchmarks import rows
from benchmarks.contenders import check, in_turns, pair, passing, without_se
from benchmarks.modes import FORWARDS, Mode, modes

NETWORKS = ("seresnet50", "efficientnet_b0", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_y_400mf")
VERSIONS = ("eager", "fused", "none")
MODES = [*modes(NETWORKS, FORWARDS, dtypes=("fp32", "bf16")), Mode("seresnet50", "step", 8, "nhwc")]


def versions(mode: Mode) -> dict[str, Any]:
    """The versions, which share nothing."""
    networks, _ = pair(mode)
    return {**networks, "none": without_se(networks["eager"])}


def measure(mode: Mode, seconds: float) -> dict[str, Any]:
    networks, x = versions(mode), mode.input()
    difference = check(mode, networks["eager"], networks["fused"], x)
    calls = {name: passing(network, mode.kind, x) for name, network in networks.items()}
    return {**in_turns(calls, seconds), "difference": difference}


def markdown(results: rows.Results) -> str:
    ratios = [("eager", "fused"), ("eager", "none")]
    return rows.comparison(results["rows"], VERSIONS, ratios, more={"diff": lambda row: f"{row['difference']:.0e}"})


def main() -> None:
    options = rows.command("networks", __doc__, "seresnet50 nhwc", seconds=15.0).parse_args()
    rows.run(options, MODES, lambda mode: measure(mode, options.seconds), markdown, "timm", "torchvision")


if __name__ == "__main__":
    main()
