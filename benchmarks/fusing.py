"""What fuse(model) makes of whole networks: `python -m benchmarks.fusing`.

Networks of timm and speechbrain with random weights and BatchNorm statistics from one batch; eager, fused, compiled and
both take turns in one process.
"""

import copy
from typing import Any

import torch

from benchmarks import rows
from benchmarks.contenders import check, compiled, in_turns, pair, passing
from benchmarks.modes import ECAPA, Mode, modes

NETWORKS = ("seresnet50", "seresnext50_32x4d", "mobilenetv3_large_100", "efficientnet_b0", "regnety_016", ECAPA)
VERSIONS = ("eager", "fused", "compiled", "compiled + fused")
RATIOS = [("eager", "fused"), ("compiled", "compiled + fused")]


def measure(mode: Mode, seconds: float, with_compile: bool) -> dict[str, Any]:
    torch._dynamo.reset()
    networks, blocks = pair(mode)
    x = mode.input()
    difference = check(mode, networks["eager"], networks["fused"], x)
    calls = {name: passing(network, mode.kind, x) for name, network in networks.items()}
    if with_compile:
        for name, version in (("eager", "compiled"), ("fused", "compiled + fused")):
            calls[version] = passing(compiled(copy.deepcopy(networks[name])), mode.kind, x)
    return {"blocks": blocks, **in_turns(calls, seconds), "difference": difference}


def markdown(results: rows.Results) -> str:
    return rows.comparison(results["rows"], VERSIONS, RATIOS, more={"blocks": lambda row: row["blocks"]})


def main() -> None:
    parser = rows.command("fusing", __doc__, "seresnet50 nhwc", seconds=10.0)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes a network")
    options = parser.parse_args()
    taken = ("timm", "speechbrain")
    rows.run(options, modes(NETWORKS), lambda mode: measure(mode, options.seconds, options.compile), markdown, *taken)


if __name__ == "__main__":
    main()
