"""Show what a word file says, which remembers the last ID of a worker: one of `Snowflake(file=...)`, or a lock file."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from senet_fast.commands import complain, printable

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers


def add(commands: "Subparsers") -> None:
    parser = commands.add_parser("word", help="show whose last ID a file remembers, and which", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="of file=, or in a folder that `leases list` shows")
    parser.add_argument("--json", action="store_true", help="print JSON, the ID a string")
    parser.set_defaults(run=run)


def collect(fd: int, path: str) -> dict[str, Any]:
    """ValueError where the file is damaged or none of a generator's."""
    from senet_fast.ids import _system, _wordfile
    from senet_fast.ids.leases._admin import time
    from senet_fast.ids.leases._locks import Locks

    content = _wordfile.read(fd, path)
    if content is None:
        raise ValueError(f"file {path!r} is empty: no generator has used it yet")
    layout, worker_id = _wordfile.of_whom(content, path)
    _wordfile.check(content, path, layout, worker_id)
    last_id, last_ms = content.last_id(layout, worker_id), content.last_ms(layout)
    holders = Locks().of(fd)
    return {
        "file": path,
        "class": content.owner,
        "worker_id": worker_id,
        "layout": repr(layout),
        "last_id": None if last_id is None else str(last_id),
        "timestamp": None if last_ms is None else time(last_ms),
        "boot": "this" if content.boot == _system.boot() else "another",
        "max_drift_ms": content.max_drift_ms,
        "held": holders.held,
        "pids": holders.pids,
    }


def run(options: argparse.Namespace) -> int:
    from senet_fast.ids import _wordfile

    try:
        fd = _wordfile.open_file(options.file, os.O_RDONLY)
        try:
            facts = collect(fd, options.file)
        finally:
            os.close(fd)
    except ValueError as error:
        complain("word", error)
        return 1
    except OSError as error:
        said = "is a symbolic link" if os.path.islink(options.file) else error.strerror
        complain("word", f"file {options.file!r}: {said}")
        return 1
    if options.json:
        print(json.dumps(facts))
        return 0
    words = {None: "?", True: "yes", False: "no"}
    pids = ", ".join(map(str, facts.pop("pids")))
    facts["held"] = f"by {pids}" if pids else words[facts["held"]]
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {'none' if value is None else printable(str(value))}")
    return 0
