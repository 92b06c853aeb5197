"""The commands, one module each: `add` declares the arguments, `run` does the work and returns the exit code.

Modules import what they need inside `run`, so that help and the ID commands never load torch.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from senet_fast.ids import Layout

    # Generic for type checkers only.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


FORMATS = ("int", "hex", "base32", "base62")


class UsageError(Exception):
    """A bad argument that only the command itself can recognise; exit code 2."""


def complain(whose: str, text: object) -> None:
    """One line on stderr. Where nobody can read it (a broken pipe, a full disk) the line is lost, and nothing else:
    neither what the command prints nor its exit code depends on it.
    """
    with contextlib.suppress(OSError):
        print(f"{whose}: {text}", file=sys.stderr)
    flush_stderr()


def flush_stderr() -> None:
    """What cannot be written is lost: the interpreter would make the exit code 120 of it."""
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send to nowhere what the stream holds, which the interpreter would write at exit, and fail at again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """Names of files may have tabs, line ends, and bytes that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def number(text: str) -> int:
    """An argument that is a count or a worker id, as argparse's `type`."""
    from senet_fast.ids._numbers import decimal

    try:
        return decimal("the number", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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

    return str if form == "int" else partial(to_string, form=form)


def reader(form: str) -> Callable[[str], int]:
    """What reads an ID as --format says. Hexadecimal digits may be fewer than the 16 of one width."""
    from senet_fast.ids import from_string
    from senet_fast.ids._numbers import decimal
    from senet_fast.ids.strings import FORMS

    if form == "int":
        return partial(decimal, "id")
    if form == "hex":
        return lambda text: from_string(text and text.rjust(FORMS["hex"].width, "0"), "hex")
    return partial(from_string, form=form)


def layout(name: str) -> "Layout":
    """The named layout of senet_fast.ids, in any case."""
    from senet_fast import ids

    named = {key.lower(): value for key, value in vars(ids).items() if isinstance(value, ids.Layout)}
    if name.lower() not in named:
        raise UsageError(f"--layout is {name!r}; expected one of {', '.join(named)}")
    return named[name.lower()]
