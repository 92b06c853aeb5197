"""Show and free the worker ids that processes of this host lease by lock files.

The folder is --directory, else $SENET_FAST_LEASES, else the one of this user in /var/tmp. Looking changes nothing and
keeps no worker id from anybody.
"""

import argparse
import json
from typing import TYPE_CHECKING

from senet_fast.commands import UsageError, complain, layout, number, printable

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers
    from senet_fast.ids import Layout
    from senet_fast.ids.leases._admin import File

LIST = """List the lock files, one a line: worker id, state, processes that hold it, time of the last ID (UTC), by how
many seconds that lies ahead of the clock, file, and why it is not used, separated by tabs; "-" is nothing, "?" unknown.

The state is "held"; "free"; "ahead", passed over until the clock gets there; "unusable", passed over until somebody
frees it; or "?": free, or held by a process that this PID namespace does not show, such as another container's.
"""
FREE = """Remove the lock file of a worker that is passed over: one that is damaged, a link, a FIFO or somebody else's,
or whose last ID lies ahead of the clock (with --force). A worker that is held is refused, and one in order is left.
"""


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("leases", help="list and free the worker ids of this host", description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="who holds which, and what is passed over", description=LIST)
    listing.add_argument("--json", action="store_true", help="an object a line")
    listing.add_argument("--layout", metavar="NAME", help="of this layout alone: its name, or that of its folder")
    listing.set_defaults(run=run_list)
    freeing = actions.add_parser("free", help="remove a lock file that is passed over", description=FREE)
    freeing.add_argument("worker_id", type=number, metavar="N", help="the worker id")
    freeing.add_argument(
        "--layout", default="twitter", metavar="NAME", help="its name, or that of its folder (twitter)"
    )
    freeing.add_argument(
        "--force", action="store_true", help="also if the last ID lies ahead of the clock: IDs up to then may repeat"
    )
    freeing.set_defaults(run=run_free)
    for action in (listing, freeing):
        action.add_argument("--directory", metavar="D", help="the folder of the lock files")


def named(name: str) -> "Layout":
    """A layout of senet_fast.ids; or any, by the name of its folder, which `leases list` shows."""
    from senet_fast.ids.leases._store import layout_named

    return layout_named(name) or layout(name)


def run_list(options: argparse.Namespace) -> int:
    from senet_fast.ids import LeaseError
    from senet_fast.ids.leases import _admin, lock_file

    wanted = None if options.layout is None else named(options.layout)
    any_file = False
    try:
        path, _ = lock_file.directory(options.directory)
        try:
            for file in _admin.files(path, wanted):
                any_file = True
                print(json.dumps(as_object(file)) if options.json else as_row(file))
        except FileNotFoundError:
            complain("leases", f"there is no folder {path}: no process has leased a worker id there")
            return 0
    except (LeaseError, ValueError) as error:
        complain("leases", error)
        return 1
    if not any_file:
        complain("leases", f"no lock files{'' if wanted is None else ' of the layout'} in {path}")
    return 0


def as_object(file: "File") -> dict[str, object]:
    from senet_fast.ids.leases._admin import time

    return {
        "worker_id": file.worker_id,
        "state": file.state,
        "held": file.holders.held,
        "pids": file.holders.pids,
        "timestamp": None if file.last.ms is None else time(file.last.ms),
        "timestamp_ms": file.last.ms,
        "ahead_ms": file.last.ahead_ms,
        "layout": file.layout,
        "file": file.path,
        "why": file.why_not,
    }


def as_row(file: "File") -> str:
    from senet_fast.ids.leases._admin import time

    held, pids = file.holders
    fields = (
        "-" if file.worker_id is None else f"{file.worker_id}",
        file.state,
        ",".join(map(str, pids)) or ("-" if held is False else "?"),
        "-" if file.last.ms is None else time(file.last.ms),
        f"{file.last.ahead_ms / 1000:.3f}" if file.last.ahead_ms else "-",
        file.path,
        *([] if file.why_not is None else [file.why_not]),
    )
    return "\t".join(map(printable, fields))


def run_free(options: argparse.Namespace) -> int:
    from senet_fast.ids import LeaseError
    from senet_fast.ids._numbers import check_int
    from senet_fast.ids.leases import _admin, lock_file

    fields = named(options.layout)
    try:
        check_int("N", options.worker_id, 0, fields.worker.max, f" ({fields.worker.width} bits)")
    except ValueError as error:
        raise UsageError(error) from None
    options.code = 1  # where what is said cannot be written, nothing is removed
    try:
        path, _ = lock_file.directory(options.directory)
        _admin.free(
            path,
            fields,
            options.worker_id,
            force=options.force,
            say=lambda sentence: print(printable(sentence), flush=True),
        )
    except (LeaseError, ValueError) as error:
        complain("leases", error)
        return 1
    return 0
