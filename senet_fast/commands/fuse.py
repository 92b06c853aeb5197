"""Fuse the SE blocks of a model, print which, and time it before and after.

MODEL is timm:NAME, torchvision:NAME, MODULE:CALLABLE (called without arguments, returns a torch.nn.Module) or FILE.pt2
(of torch.export.save). BatchNorm weights of zero, as new networks have them, become one: they would hide the blocks.
"""

import argparse
import copy
import sys
from typing import TYPE_CHECKING, Any

from senet_fast.commands import UsageError, complain

if TYPE_CHECKING:
    from torch import nn

    from senet_fast.commands import Subparsers

TOLERANCE = 1e-3  # float32, against the largest output; rounding grows through a random network


def sizes(text: str) -> list[int]:
    values = [int(size) for size in text.split("x")]
    if len(values) < 2 or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected sizes such as 1x3x224x224")
    return values


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "fuse", help="fuse the SE blocks of a model, with before and after", description=__doc__
    )
    parser.add_argument("model", metavar="MODEL", help="timm:seresnet50, torchvision:NAME, MODULE:CALLABLE or FILE.pt2")
    parser.add_argument(
        "--input", type=sizes, default=[1, 3, 224, 224], metavar="SIZES", help="of the input (default: 1x3x224x224)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="timing, shared by the two (default: 5; 0: none)")
    parser.add_argument("--strict", action="store_true", help="fail if a block that squeezes and gates would be left")
    parser.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="PATH",
        help="tell about each module at and below PATH (default: all) why it is fused or not",
    )
    parser.set_defaults(run=run)


def create(name: str) -> "nn.Module":
    """The model that ``name`` stands for."""
    from importlib import import_module

    import torch
    from torch import nn

    source, _, rest = name.partition(":")
    saved = name.endswith(".pt2")
    if not rest and not saved:
        raise UsageError(f"MODEL is {name!r}; expected timm:NAME, torchvision:NAME, MODULE:CALLABLE or a .pt2 file")
    try:
        if saved:
            return torch.export.load(name).module()
        if source == "timm":
            made: Any = import_module("timm").create_model(rest)
        elif source == "torchvision":
            made = import_module("torchvision").models.get_model(rest)
        else:
            made = getattr(import_module(source), rest)()
    except Exception as error:  # whatever somebody's code or file comes to
        raise UsageError(f"MODEL is {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"MODEL is {name!r}, a {type(made).__name__}; expected a torch.nn.Module")
    return made.eval()


def run(options: argparse.Namespace) -> int:
    import torch

    from senet_fast.fusion import fuse
    from senet_fast.measure import interleave, moved, relative_difference, wake

    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the current folder
    torch.manual_seed(0)
    model = create(options.model)
    wake(model)
    before = copy.deepcopy(model)
    try:
        report = fuse(model, strict=options.strict)
    except ValueError as error:
        complain("fuse", error)
        return 1
    print(report)
    if options.explain is not None:
        try:
            print(f"\n{report.explain(options.explain)}")
        except ValueError as error:
            raise UsageError(f"--explain: {error}") from None
    if not report.fused or not options.seconds:
        return 0
    x = torch.randn(options.input)
    with torch.inference_mode():
        try:
            expected, actual = before(x), model(x)
        except (RuntimeError, ValueError) as error:
            complain("fuse", f"the model does not take --input {'x'.join(map(str, options.input))}: {error}")
            return 1
        times = interleave({"before": lambda: before(x), "after": lambda: model(x)}, options.seconds, timed=moved)
    if isinstance(expected, torch.Tensor):
        difference = relative_difference(expected, actual)
        print(f"\nlargest difference of the outputs, relative: {difference:.1e}")
        if not difference <= TOLERANCE:
            complain("fuse", f"the outputs differ by {difference:.1e}")
            return 1
    ratio = times["before"] / times["after"]
    print(f"before {times['before'] * 1e3:.2f} ms, after {times['after'] * 1e3:.2f} ms: {ratio:.2f} times as fast")
    if not times.believable:
        print("(other programs took the cores in nearly every pass: do not trust these times)")
    return 0
