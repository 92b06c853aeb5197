"""What SE costs a whole network: `python -m benchmarks.claim`.

Each network of senet_fast.models beside itself with SE: eager blocks, torch.compile of those, and the fused op with its
neighbours. The paper has 164 ms without and 167 ms with SE for an image through ResNet-50 on a CPU, and 190 and 209 ms
for a training step of 256 images on eight GPUs (arXiv 1709.01507, section 4).
"""

import copy
from typing import Any

import torch

from benchmarks import rows
from benchmarks.contenders import check, compiled, in_turns, own, passing
from benchmarks.modes import Mode, modes
from senet_fast.se import SEBlock

NETWORKS = (
    *("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d", "senet154", "vgg16_bn"),
    *("bn_inception", "mobilenet_v1", "shufflenet_v1", "inception_resnet_v2"),
)
CONTENDERS = ("plain", "eager", "compile", "ours")
TOLERANCE = 1e-3  # of the deepest networks


def measure(mode: Mode, seconds: float, with_compile: bool) -> dict[str, Any]:
    torch._dynamo.reset()
    made: dict[str, Any] = own(mode, mode.network, plain=False, eager=SEBlock, ours=True)
    if with_compile:
        made["compile"] = compiled(copy.deepcopy(made["eager"]))
    x = mode.input()
    difference = check(mode, made["eager"], made["ours"], x, TOLERANCE)
    calls = {name: passing(made[name], mode.kind, x) for name in CONTENDERS if name in made}
    return {**in_turns(calls, seconds), "difference": difference}


def markdown(results: rows.Results) -> str:
    return rows.comparison(results["rows"], CONTENDERS, [(name, "plain") for name in CONTENDERS[1:]])


def main() -> None:
    parser = rows.command("claim", __doc__, "resnet50 forward", seconds=20.0)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes a network")
    options = parser.parse_args()
    rows.run(options, modes(NETWORKS), lambda mode: measure(mode, options.seconds, not options.no_compile), markdown)


if __name__ == "__main__":
    main()
