"""Draw Snowflake IDs, one a line."""

import argparse
import sys
from array import array
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, add_id_options, layout

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers

CHUNK = 4096  # IDs in memory at a time: one tick's worth of the common layout


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; expected 0 or more")
    return value


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("ids", help="draw Snowflake IDs, one a line", description=__doc__)
    parser.add_argument("-n", "--count", type=count, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--worker-id",
        type=int,
        metavar="W",
        help="this process's worker id, needed unless the layout has no worker field; two processes at the same time"
        " need two, or they draw the same IDs",
    )
    add_id_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from senet_fast.ids import Snowflake, SnowflakeError

    try:
        fields = layout(options.layout)
        if options.worker_id is None and fields.worker.width:
            raise UsageError(
                f"--worker-id is missing; expected 0 to {fields.worker.max}, and another one for every process that"
                " draws at the same time: with the same they draw the same IDs"
            )
        generator = Snowflake(worker_id=options.worker_id, layout=fields)
    except (ValueError, UsageError) as error:
        print(f"ids: {error}", file=sys.stderr)
        return 2
    form = "{:d}\n" if options.format == "int" else "{:016x}\n"
    chunk = memoryview(array("q", bytes(8 * CHUNK)))  # no need of NumPy
    left = options.count
    try:
        while left:
            drawn = chunk[: min(left, CHUNK)]
            generator.fill(drawn)
            sys.stdout.write("".join(map(form.format, drawn)))
            left -= len(drawn)
    except SnowflakeError as error:
        print(f"ids: {error}; {left} of {options.count} not drawn", file=sys.stderr)
        return 1
    return 0
