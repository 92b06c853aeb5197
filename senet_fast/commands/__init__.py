"""The commands, one module each: `add` declares the arguments, `run` does the work and returns the exit code.

Modules import what they need inside `run`, so that help and the ID commands never load torch.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from senet_fast.ids import Layout

    # Generic for type checkers only.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class UsageError(Exception):
    """A bad argument that only the command itself can recognise."""


def add_id_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", default="twitter", help="name of the layout (default: twitter)")
    parser.add_argument("--format", choices=("int", "hex"), default="int", help="decimal, or 16 hex digits that sort")


def layout(name: str) -> "Layout":
    """The named layout of senet_fast.ids, in any case."""
    from senet_fast import ids

    named = {key.lower(): value for key, value in vars(ids).items() if isinstance(value, ids.Layout)}
    if name.lower() not in named:
        raise UsageError(f"--layout is {name!r}; expected one of {', '.join(named)}")
    return named[name.lower()]
