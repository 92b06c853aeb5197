"""The commands, one module each: `add` declares the arguments, `run` does the work and returns the exit code.

Modules import what they need inside `run`, so that help and the ID commands never load torch.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from senet_fast.ids import Layout

    # Generic for type checkers only.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


FORMATS = ("int", "hex", "base32", "base62")


class UsageError(Exception):
    """A bad argument that only the command itself can recognise."""


def add_id_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", default="twitter", help="name of the layout (default: twitter)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="int",
        help="decimal (default), or digits of one width that sort like the IDs",
    )


def formatter(form: str) -> Callable[[int], str]:
    """What writes an ID as --format says."""
    from senet_fast.ids import to_string

    if form in ("int", "hex"):
        return ("{:d}" if form == "int" else "{:016x}").format
    return partial(to_string, form=form)


def layout(name: str) -> "Layout":
    """The named layout of senet_fast.ids, in any case."""
    from senet_fast import ids

    named = {key.lower(): value for key, value in vars(ids).items() if isinstance(value, ids.Layout)}
    if name.lower() not in named:
        raise UsageError(f"--layout is {name!r}; expected one of {', '.join(named)}")
    return named[name.lower()]
