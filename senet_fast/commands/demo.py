"""Both halves on real input: train with the fused op, fuse a network, draw a million IDs, write a report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from senet_fast.commands import complain

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("demo", help="both halves on real input, with a report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-report"), metavar="FOLDER", help="where the report goes")
    parser.add_argument("--quick", action="store_true", help="small sizes, no torch.compile: a check only")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from senet_fast.demo.untimed import started

    with started(options.quick) as other:
        try:
            from senet_fast.demo.main import run as demo
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("senet_fast"):
                raise
            advice = "run `make demo`, or `pip install --no-build-isolation -e '.[demo]'`, in the source folder"
            complain("demo", f"{error}; {advice}")
            return 1
        return demo(options.out, options.quick, other)
