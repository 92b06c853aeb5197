"""What people may see of the lock files of a host, and do about those that LockFile passes over."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import NamedTuple

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases import _folder
from senet_fast.ids.leases._locks import Holders, Locks
from senet_fast.ids.leases._store import layout_name, layout_named
from senet_fast.ids.leases.lock_file import Last, last

_UNKNOWN = Holders(None, [])


class File(NamedTuple):
    """A file in the folders of a host, or what is there instead. `why_not`: why LockFile does not use it."""

    path: str
    layout: str | None
    worker_id: int | None
    holders: Holders = _UNKNOWN
    last: Last = Last(None, 0)
    why_not: str | None = None

    @property
    def state(self) -> str:
        """Whether LockFile would take it: "free", or why not; "?" where nobody can tell whether it is held."""
        if self.holders.held:
            return "held"
        if self.why_not is not None:
            return "unusable"
        if self.last.too_far:
            return "ahead"
        return "?" if self.holders.held is None else "free"


def time(ms: int) -> str:
    return (
        datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000).isoformat(timespec="milliseconds")
    )


def files(directory: str, layout: Layout | None = None) -> Iterator[File]:
    """All that is in the folder, or of one layout in it. Nothing is made, changed or locked. FileNotFoundError where
    there is no folder; LeaseError where LockFile refuses it.
    """
    locks = Locks()
    with ExitStack() as opened:
        top = _folder.look_into(directory)
        opened.callback(os.close, top.fd)
        for name in sorted(os.listdir(top.fd)):
            found = layout_named(name)
            if layout is None or found == layout:
                yield from _files_below(top, name, found, locks)


def _files_below(top: _folder.Folder, name: str, layout: Layout | None, locks: Locks) -> Iterator[File]:
    path = f"{top.path}/{name}"
    if layout is None:
        yield File(path, None, None, why_not="is not the folder of a layout")
        return
    try:
        folder = _folder.look_into(name, top)
    except FileNotFoundError:
        return
    except LeaseError as error:
        yield File(path, name, None, why_not=str(error))
        return
    try:
        for entry in sorted(os.listdir(folder.fd), key=lambda entry: (len(entry), entry)):
            try:
                yield _file(folder, entry, layout, locks)
            except FileNotFoundError:  # it was there a moment ago
                continue
    finally:
        os.close(folder.fd)


def _file(folder: _folder.Folder, name: str, layout: Layout, locks: Locks) -> File:
    path = f"{folder.path}/{name}"
    worker_id = int(name) if re.fullmatch("0|[1-9][0-9]{0,17}", name, re.ASCII) else -1
    if not 0 <= worker_id <= layout.worker.max:
        return File(path, layout_name(layout), None, why_not="is no worker id of the layout")
    look = _folder.look_at(folder, name)
    file = File(path, layout_name(layout), worker_id, why_not=look.why_not)
    if look.fd is None:
        return file
    try:
        file = file._replace(holders=locks.of(look.fd))
        return file if look.why_not else file._replace(last=last(look.fd, path, layout, worker_id))
    except ValueError as error:
        return file._replace(why_not=str(error))
    finally:
        os.close(look.fd)


def free(directory: str, layout: Layout, worker_id: int, *, force: bool, say: Callable[[str], object]) -> None:
    """Removes the file of a worker that LockFile passes over, once `say` has been told what it was. LeaseError where
    it is held, or cannot be removed; or may not be without `force`, since its last ID lies ahead of the clock.
    """
    path = f"{directory}/{layout_name(layout)}/{worker_id}"
    with ExitStack() as opened:
        try:
            top = _folder.look_into(directory)
            opened.callback(os.close, top.fd)
            folder = _folder.look_into(layout_name(layout), top)
            opened.callback(os.close, folder.fd)
            look = _folder.look_at(folder, f"{worker_id}")
        except FileNotFoundError:
            say(f"nothing to do: there is no {path}, so worker {worker_id} is free")
            return
        if look.fd is None:
            if stat.S_ISREG(look.status.st_mode) or stat.S_ISDIR(look.status.st_mode):
                raise LeaseError(f"{path} cannot be freed ({look.why_not}); see to it by hand")
        else:
            opened.callback(os.close, look.fd)
            try:
                fcntl.flock(look.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LeaseError(f"worker {worker_id} is held by {_named(Locks().of(look.fd))} ({path})") from None
            if not _folder.is_there(folder, f"{worker_id}", look.fd):
                raise LeaseError(f"{path} was exchanged meanwhile, so it was left; look again")
        why = look.why_not
        try:
            found = Last(None, 0) if why or look.fd is None else last(look.fd, path, layout, worker_id)
        except ValueError as error:
            found, why = Last(None, 0), str(error)
        if why is not None:
            what = f"{why}; its last ID is not known, and if it lies ahead of the clock, IDs up to it may repeat"
        elif found.ms is not None and found.too_far:
            what = (
                f"the last ID of worker {worker_id} lies {found.ahead_ms / 1000:.1f} s ahead of the clock; without the"
                f" file, its IDs up to {time(found.ms)} may repeat"
            )
            if not force:
                raise LeaseError(f"{path} was left: {what}. Wait until then, set the clock right, or give --force")
        else:
            say(f"nothing to do: {path} is in order, and nobody holds worker {worker_id}")
            return
        say(f"removing {path}: {what}")
        _folder.remove(folder, f"{worker_id}", look.status)


def _named(holders: Holders) -> str:
    """Those that hold what could not be locked."""
    pids = holders.pids
    if not pids:
        return "a process that cannot be seen from here: of another container, or forked by one that has ended"
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
