"""Show versions and how this build of the op was made and runs."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senet_fast._version import __version__

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("info", help="show versions, build, ISA, threads, CUDA", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--library", action="store_true", help="print the path of the op library alone; loads no torch")
    parser.set_defaults(run=run)


def library() -> Path:
    """The shared object that registers the ops in a process, of Python or not, when it is loaded behind torch."""
    path = Path(__file__).resolve().parents[1] / "se" / "libsenet_fast.so"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: this senet_fast was built without its op (SENET_FAST_SE=0), or not yet")
    return path


def collect() -> dict[str, Any]:
    """Versions, and for each half whether it is usable or why not."""
    facts: dict[str, Any] = {
        "senet_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
    try:
        import senet_fast.ids  # noqa: F401

        facts["ids"] = "built"
    except ImportError as error:
        facts["ids"] = f"not usable: {error}"
    try:
        import torch

        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        from senet_fast.se import _C

        build = _C.build_info()
        facts |= {"se": "built", "isa": _C.isa(), "isas": _C.isas(), "cuda": bool(build.get("cuda")), "build": build}
    except (ImportError, ValueError) as error:
        facts["se"] = f"not usable: {error}"
    return facts


def run(options: argparse.Namespace) -> int:
    if options.library:
        print(library())
        return 0
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    build = facts.pop("build", {})
    shown = {**facts, **{f"build {key}": value for key, value in build.items()}}
    width = max(map(len, shown))
    for key, value in shown.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{key:{width}}  {text}")
    return 0
