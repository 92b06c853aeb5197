"""Worker ids of one host, by locks that the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import functools
import logging
import mmap
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from senet_fast.ids import _system, _wordfile
from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases import _folder, _host
from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases._store import candidates, layout_name, named, now_ms

VARIABLE = "SENET_FAST_LEASES"
_DEFAULT = "/var/tmp/senet_fast_ids-"
_AHEAD_MS = 1000  # how far a last ID may lie ahead of the clock; and how far a group's file is written ahead

_logger = logging.getLogger("senet_fast.ids")


def default_directory() -> str:
    """A folder for each user: nobody else can take its names, fill it or change what is in it. /var/tmp outlives a
    restart of the host, as $XDG_RUNTIME_DIR does not, and services without a home have it, too.
    """
    return f"{_DEFAULT}{os.geteuid()}"


@functools.cache
def _tell_of_others(path: str) -> None:
    """Once: who else of this host has a default folder, and the same worker ids in it."""
    parent, prefix = os.path.split(_DEFAULT)
    with os.scandir(parent) as entries:
        found = [entry for entry in entries if entry.name.startswith(prefix) and entry.path != path]
    for entry in found:
        try:
            uid = entry.stat(follow_symlinks=False).st_uid
        except FileNotFoundError:  # its user or a cleaner has just removed it
            continue
        if entry.name == f"{prefix}{uid}":
            _logger.warning(
                "%s has lock files of its own in %s, whose worker ids are those of %s, too: IDs of the two users can"
                " repeat. To share worker ids, name a folder of mode 2770 that a group of both owns by %s",
                _folder.user(uid),
                entry.path,
                path,
                VARIABLE,
            )


def directory(given: str | os.PathLike[str] | None = None) -> tuple[str, bool]:
    """The absolute path of the folder, and whether somebody named it."""
    if given is not None:
        return _absolute(given), True
    if not (named_by := os.environ.get(VARIABLE)):
        return default_directory(), False
    path = os.path.expanduser(named_by)
    if not os.path.isabs(path):
        raise LeaseError(
            f"{VARIABLE} is {named_by!r}; expected an absolute path, since each process may run in a folder of its own"
        )
    return os.path.normpath(path), True


class Last(NamedTuple):
    """The time of a file's last ID, None for none; and how far that lies ahead of the clock."""

    ms: int | None
    ahead_ms: int

    @property
    def too_far(self) -> bool:
        """Whether the worker is passed over for it."""
        return self.ahead_ms > _AHEAD_MS


def last(fd: int, path: str, layout: Layout, worker_id: int) -> Last:
    """The last ID of this worker's file; ValueError where the file is damaged or another's."""
    content = _wordfile.read(fd, path)
    if content is not None:
        _wordfile.check(content, path, layout, worker_id)
    ms = None if content is None else content.last_ms(layout)
    return Last(ms, 0 if ms is None else max(0, ms - now_ms()))


class NoneFree(LeaseError):
    """All worker ids that a LockFile may choose from are held, or unusable."""


class LockFile:
    """The first worker id whose file nobody has locked, for as long as the process (or a fork's child of it) lives.

    The last ID lives in the file: a forked child shares it, and whoever takes the worker next goes on behind it, at
    once after a crash and also if the clock was set back meanwhile. Workers whose last ID lies more than a second ahead
    of the clock are passed over, and so are files that are damaged, links, or somebody else's; the logger
    `senet_fast.ids` says which. A file that is deleted while it is held is noticed before its worker id can repeat.

    directory: where the files are, a folder for each layout; default $SENET_FAST_LEASES, else a folder of this user in
        /var/tmp. All processes of the host that use the layout must name the same one, on a local file system. It must
        belong to this user and be nobody else's to write. To share worker ids between users, its owner or root gives it
        a group and mode 2770 (`install -d -m 2770 -g GROUP FOLDER`): the last ID then lives in memory, forked children
        share it by on_fork="share" only, and the next holder of a killed one's worker waits for a second or a tick.
        In a container, or a service with a /var/tmp of its own, the default is refused, since others would take the
        same worker ids.
    workers: the worker ids to choose from; default: all of the layout.
    """

    renew_every: float | None = 0.0

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, workers: Iterable[int] | None = None
    ) -> None:
        self._directory = None if directory is None else _absolute(directory)
        self._named = named(workers)
        self._together = False
        self._folders: list[_folder.Folder] = []
        self._fd: int | None = None
        self._pid = 0
        self._mark_ms = 0  # before which this holder may issue, in a group's folder
        self._name = ""
        self._layout: Layout | None = None

    @classmethod
    def of(cls, worker_id: int, *, together: bool) -> LockFile:
        """The file of one worker id that was chosen elsewhere, in whatever /var/tmp this process sees. `together`: held
        with all others that ask so, who issue from the last ID in the file.
        """
        lease = cls(workers=[worker_id])
        lease._directory = directory()[0]
        if together and (why := _system.why_not_shared()):
            raise LeaseError(why)
        lease._together = together
        return lease

    def acquire(self, layout: Layout) -> Grant:
        if self._fd is not None:
            raise LeaseError("this LockFile already holds a worker id; expected one LockFile for each generator")
        workers = candidates(self._named, layout)
        path = self._directory or self._default()
        self._layout = layout
        try:
            self._folders = [top := _folder.open_top(path)]
            self._folders.append(_folder.open_below(top, layout_name(layout)))
            return self._first_free(workers, layout)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError) and error.errno is not None:  # no space left, say
                raise LeaseError(f"the lock files in {path}: {error.strerror}{_folder.HOW_ELSE}") from None
            raise

    def _default(self) -> str:
        path, is_named = directory()
        if not is_named and (why := _host.why_private(path)):
            raise LeaseError(
                f"{path} is not the same for all processes of this host: {why}. Others would take the same worker ids."
                f" Name a folder that all of them see, such as a shared volume, by {VARIABLE} or LockFile(directory);"
                " or lease from Redis, PostgreSQL, etcd or ZooKeeper; or take the number that the scheduler gave, by"
                " Environment(). If this is the only process with IDs of the layout, fix a worker_id"
            )
        if not is_named:
            if not os.path.isdir(os.path.dirname(path)):
                raise LeaseError(f"{os.path.dirname(path)} is not there{_folder.HOW_ELSE}")
            _tell_of_others(path)
        return path

    def _first_free(self, workers: Iterable[int], layout: Layout) -> Grant:
        folder = self._folders[-1]
        held = ahead = 0
        unusable = []
        for worker_id in workers:
            try:
                fd = _folder.open_file(folder, f"{worker_id}")
            except ValueError as error:
                unusable.append(f"{worker_id} {error}")
                continue
            self._fd, self._name, self._pid = fd, f"{worker_id}", os.getpid()
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if self._together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                found = last(fd, self._path, layout, worker_id)
                if not _folder.is_there(folder, self._name, fd):
                    held += 1  # it was exchanged meanwhile
                elif found.too_far:
                    ahead += 1
                else:
                    if unusable:
                        _logger.warning("%s: passed over %s", folder.path, _some(unusable))
                    return self._grant(worker_id, layout)
            except BlockingIOError:
                held += 1
            except ValueError as error:
                unusable.append(f"{worker_id}: {error}")
            os.close(fd)
            self._fd = None
        said = [f"{held} of {held + ahead + len(unusable)} worker ids are held"]
        said += [f"the last ID of {ahead} lies ahead of the clock"] if ahead else []
        said += [f"passed over {_some(unusable)}"] if unusable else []
        raise NoneFree(f"{folder.path}: {', and '.join(said)}")

    @property
    def _path(self) -> str:
        return f"{self._folders[-1].path}/{self._name}"

    def _grant(self, worker_id: int, layout: Layout) -> Grant:
        assert self._fd is not None
        shared_by = self._folders[-1].shared_by
        if self._together and shared_by is not None:
            raise LeaseError(f"{self._folders[0].path} is shared by a group; expected a folder of this user alone")
        if not self._together:
            _wordfile.prepare(self._fd, self._path, _wordfile.ANY_OWNER, layout, worker_id, 0, exclusive=True)
        if shared_by is None:
            return Grant(worker_id, file=(self._fd, self._path))
        # Not mapped: whoever shares the file could truncate it, and this process would end by SIGBUS.
        content = _wordfile.read(self._fd, self._path)
        assert content is not None
        last_ms = content.last_ms(layout)
        # The holder of a file that was deleted before this one was made may issue until it looks again.
        self._mark_ms = self._a_second_after(now_ms()) if last_ms is None else last_ms + layout.tick_ms
        while (early_ms := self._mark_ms - now_ms()) > 0:
            time.sleep(early_ms / 1000)
        return Grant(worker_id, self._mark_ms, self.renew())

    def _a_second_after(self, ms: int) -> int:
        """And to the end of that tick, since parts of ticks are not granted."""
        assert self._layout is not None
        epoch_ms, tick_ms = self._layout.epoch_ms, self._layout.tick_ms
        return epoch_ms + ((ms + _AHEAD_MS - epoch_ms) // tick_ms + 1) * tick_ms

    def _write(self, until_ms: int) -> None:
        """The last ID before `until_ms`."""
        assert self._fd is not None
        assert self._layout is not None
        layout = self._layout
        tick = -((layout.epoch_ms - until_ms) // layout.tick_ms) + _wordfile.FIRST_TICK
        _wordfile.write_word(self._fd, (tick << layout.sequence.width) - 1)

    def renew(self) -> int:
        """Asked by the claims that reach the end of the grant. In a group's folder it promises the second that begins
        before the look to this holder, in the file.
        """
        began_ms = now_ms()  # before the look: the file may be deleted, and made again, right after it
        if self._fd is None:
            raise LeaseError("this LockFile holds no worker id")
        if not _folder.is_there(self._folders[-1], self._name, self._fd):
            raise LeaseError(f"the lock file {self._path} was deleted or exchanged while it was held")
        if (size := os.fstat(self._fd).st_size) != mmap.PAGESIZE:
            raise LeaseError(f"the lock file {self._path} was truncated to {size} bytes while it was held")
        if self._folders[-1].shared_by is None:
            return began_ms
        self._mark_ms = max(self._mark_ms, self._a_second_after(began_ms))  # never lowered
        self._write(self._mark_ms)
        return self._mark_ms

    def release(self, unused_from_ms: int) -> None:
        """The last ID stays in the file, which forked children may go on to share with the next holder. In a child it
        leaves file and lock, which are the parent's, as they are.
        """
        if self._fd is not None and self._pid == os.getpid():
            if self._folders[-1].shared_by is not None:
                self._write(unused_from_ms)
            _wordfile.unlock(self._fd)
        self._close()

    def _close(self) -> None:
        for fd in [folder.fd for folder in self._folders] + ([] if self._fd is None else [self._fd]):
            os.close(fd)
        self._folders, self._fd = [], None


def _absolute(path: str | os.PathLike[str]) -> str:
    if not os.fspath(path):
        raise ValueError("directory is empty; expected a path, or None for the default")
    return os.path.abspath(os.path.expanduser(os.fsdecode(path)))


def _some(unusable: list[str]) -> str:
    """The first few, and how many more."""
    more = len(unusable) - 3
    return "; ".join(unusable[:3]) + (f"; and {more} more" if more > 0 else "")
