"""Print SQL that decodes and bounds the IDs of a layout inside a database: times, workers, sequences, smallest IDs."""

import argparse
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, layout

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("sql", help="print SQL functions that decode and bound IDs", description=__doc__)
    parser.add_argument("--dialect", required=True, help="postgresql, mysql (MariaDB), sqlite or clickhouse")
    parser.add_argument("--layout", default="twitter", help="name of the layout (default: twitter)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from senet_fast.ids.sql import functions

    try:
        text = functions(options.dialect, layout(options.layout))
    except ValueError as error:
        raise UsageError(error) from None
    print(text, end="")
    return 0
