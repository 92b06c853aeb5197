"""Print the smallest and the largest ID of a range of time, FROM <= time < TO, for a database's `BETWEEN`.

A time is ISO 8601 with a zone (2024-05-01T12:00:00Z), a date (its midnight in UTC), or milliseconds since 1970.
"""

import argparse
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, add_id_options, formatter, layout

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def time(text: str) -> int | datetime:
    if re.fullmatch(r"[0-9]{5,18}", text, re.ASCII):
        return int(text)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected ISO 8601 or milliseconds since 1970") from None
    if parsed.tzinfo is None:
        if len(text) > 10:
            raise argparse.ArgumentTypeError(f"{text!r} has no time zone; expected one, as in {text}Z")
        return parsed.replace(tzinfo=UTC)
    return parsed


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("range", help="show the smallest and largest ID of a time range", description=__doc__)
    parser.add_argument("begin", metavar="FROM", type=time)
    parser.add_argument("end", metavar="TO", type=time)
    add_id_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        fields = layout(options.layout)
        first, last = fields.min_id(options.begin), fields.min_id(options.end) - 1
        if last < first:
            raise UsageError(f"no ID of {options.layout} lies from {options.begin} to before {options.end}")
    except (ValueError, UsageError) as error:
        print(f"range: {error}", file=sys.stderr)
        return 2
    form = formatter(options.format)
    print(form(first), form(last), sep="\t")
    return 0
