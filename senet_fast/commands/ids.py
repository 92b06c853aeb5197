"""Draw Snowflake IDs, one a line."""

import argparse
import sys
from array import array
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, add_id_options, complain, formatter, layout, number

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers

CHUNK = 4096  # IDs in memory at a time: one tick's worth of the common layout


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("ids", help="draw Snowflake IDs, one a line", description=__doc__)
    parser.add_argument("-n", "--count", type=number, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--worker-id",
        type=number,
        metavar="W",
        help="this process's worker id; default: one that no other process of this host holds (lock files)."
        " Processes on several hosts need different ones, or they draw the same IDs",
    )
    add_id_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from senet_fast.ids import LeaseError, Snowflake, SnowflakeError

    fields = layout(options.layout)
    try:
        if options.worker_id is None:
            generator = Snowflake.acquire(layout=fields)
        else:
            generator = Snowflake(worker_id=options.worker_id, layout=fields)
    except ValueError as error:
        raise UsageError(error) from None
    except LeaseError as error:
        complain("ids", f"{error}; --worker-id names one")
        return 1
    form = formatter(options.format)
    chunk = memoryview(array("q", bytes(8 * CHUNK)))  # no need of NumPy
    left = options.count
    try:
        while left:
            drawn = chunk[: min(left, CHUNK)]
            generator.fill(drawn)
            sys.stdout.write("\n".join(map(form, drawn)) + "\n")
            left -= len(drawn)
    except SnowflakeError as error:
        complain("ids", f"{error}; {left} of {options.count} not drawn")
        return 1
    finally:
        generator.close()
    return 0
