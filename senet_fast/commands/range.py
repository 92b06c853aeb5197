"""Print the smallest and the largest ID of a range of time, FROM <= time < TO, for a database's `BETWEEN`.

A time is ISO 8601 with a zone (2024-05-01T12:00:00Z), a date (its midnight in UTC), or 13 digits of milliseconds since
1970, which has them from 2001 to 2286; other numbers, such as seconds, are refused.
"""

import argparse
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, add_id_options, formatter, layout

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def time(text: str) -> int | datetime:
    expected = "expected ISO 8601 such as 2024-05-01T12:00:00Z, or milliseconds since 1970 in 13 digits"
    if re.fullmatch(r"[0-9]{13}", text, re.ASCII):
        return int(text)
    if text.isdigit() and len(text) != 8:  # 20240501 is ISO 8601
        seconds = ": seconds?" if len(text) == 10 else ""
        raise argparse.ArgumentTypeError(f"{text!r} is a number of {len(text)} digits{seconds}; {expected}")
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; {expected}") from None
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone; expected one, as in {text}Z")
    if re.search(r"[.,][0-9]{7}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is finer than a microsecond; expected 6 digits at most")
    return parsed


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("range", help="show the smallest and largest ID of a time range", description=__doc__)
    parser.add_argument("begin", metavar="FROM", type=time)
    parser.add_argument("end", metavar="TO", type=time)
    add_id_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    fields = layout(options.layout)
    first, last = fields.min_id(options.begin), fields.min_id(options.end) - 1
    if last < first:
        raise UsageError(f"no ID of {options.layout} lies from {options.begin} to before {options.end}")
    form = formatter(options.format)
    print(form(first), form(last), sep="\t")
    return 0
