"""Decode Snowflake IDs, from the arguments or else from stdin, into lines of id, time, worker and sequence.

The four are separated by tabs; a fifth column has the worker's parts, such as "datacenter=11 worker=26", where the
layout names any. What is no ID of the layout is named on stderr, the rest is still decoded, and the exit code is 1.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from senet_fast.commands import add_id_options, complain, layout, reader

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("decode", help="show the time, worker and sequence of IDs", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="an ID (default: read stdin, one a line)")
    parser.add_argument(
        "--tz", type=zone, default=UTC, metavar="ZONE", help="of the times: Europe/Berlin, local, ... (default: UTC)"
    )
    parser.add_argument("--json", action="store_true", help="an object a line, the ID a string as it was given")
    add_id_options(parser)
    parser.set_defaults(run=run)


def zone(name: str) -> tzinfo | None:
    """None is the time zone of this host."""
    try:
        return None if name == "local" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # a folder of zones is an OSError
        raise argparse.ArgumentTypeError(
            f"{name!r} is no time zone that this host knows; expected one such as Europe/Berlin, or local"
        ) from None


def stdin_lines() -> Iterator[tuple[str, str]]:
    """(where, text) of every line that is not blank; bytes that are no UTF-8 become an error of their line only."""
    if sys.stdin is None:
        raise OSError("stdin is closed; expected IDs there, one a line, or as arguments")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="backslashreplace")  # files of Windows begin with a mark
    try:
        for place, line in enumerate(sys.stdin, 1):
            if text := line.strip():
                yield f"line {place}: ", text
    except OSError as error:
        raise OSError(f"stdin cannot be read: {error}") from None


def run(options: argparse.Namespace) -> int:
    fields = layout(options.layout)
    given: Iterable[tuple[str, str]] = [("", text) for text in options.ids] if options.ids else stdin_lines()
    read = reader(options.format)
    for where, text in given:
        try:
            decoded = fields.decode(read(text))
        except ValueError as error:
            shown = text if len(text) <= 80 else text[:77] + "..."
            complain("decode", f"{where}{shown!r}: {error}")
            options.code = 1
            continue
        time = decoded.timestamp.astimezone(options.tz).isoformat(timespec="milliseconds")
        parts = fields.parts(decoded.worker_id)
        if options.json:
            print(json.dumps({"id": text, **decoded._asdict(), "timestamp": time, "parts": parts}))
        else:
            named = [" ".join(f"{name}={value}" for name, value in parts.items())] if parts else []
            print(text, time, decoded.worker_id, decoded.sequence, *named, sep="\t")
    return int(options.code)
