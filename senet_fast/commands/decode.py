"""Decode Snowflake IDs, from the arguments or else from stdin, into lines of id, time (UTC), worker and sequence.

The four are separated by tabs. What is no ID of the layout is named on stderr, the rest is still decoded, and the exit
code is then 1.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, add_id_options, layout

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("decode", help="show the time, worker and sequence of IDs", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="an ID (default: read stdin, one a line)")
    add_id_options(parser)
    parser.set_defaults(run=run)


def number(text: str, base: int) -> int:
    """The integer that `text` spells, nothing looser: no underscores, no other scripts' digits."""
    digits = "0123456789abcdef"[:base]
    bare = text.removeprefix("-")
    if not bare or set(bare.lower()) - set(digits):
        raise ValueError(f"not a {'decimal' if base == 10 else 'hexadecimal'} integer")
    if len(bare) > 64:
        raise ValueError("too long for an ID")
    return int(text, base)


def reader(form: str) -> Callable[[str], int]:
    """What reads an ID as --format says."""
    from senet_fast.ids import from_string

    if form in ("int", "hex"):
        return partial(number, base=10 if form == "int" else 16)
    return partial(from_string, form=form)


def stdin_lines() -> Iterator[tuple[str, str]]:
    """(where, text) of every line that is not blank; bytes that are no UTF-8 become an error of their line only."""
    if sys.stdin is None:
        raise OSError("stdin is closed; expected IDs there, one a line, or as arguments")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")
    for place, line in enumerate(sys.stdin, 1):
        if text := line.strip():
            yield f"line {place}: ", text


def run(options: argparse.Namespace) -> int:
    try:
        fields = layout(options.layout)
    except UsageError as error:
        print(f"decode: {error}", file=sys.stderr)
        return 2
    given: Iterable[tuple[str, str]] = [("", text) for text in options.ids] if options.ids else stdin_lines()
    read = reader(options.format)
    code = 0
    for where, text in given:
        try:
            value = read(text)
            decoded = fields.decode(value)
        except ValueError as error:
            shown = text if len(text) <= 80 else text[:77] + "..."
            print(f"decode: {where}{shown!r}: {error}", file=sys.stderr)
            code = 1
            continue
        time = decoded.timestamp.isoformat(timespec="milliseconds")
        print(text, time, decoded.worker_id, decoded.sequence, sep="\t")
    return code
