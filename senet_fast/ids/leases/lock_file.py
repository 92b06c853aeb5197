"""Worker ids of one host, by locks that the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from senet_fast.ids import _wordfile
from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._held import Grant
from senet_fast.ids.leases._store import candidates, layout_name, named, now_ms

DIRECTORY = "/var/tmp/senet_fast_ids"  # survives a restart of the host, and is the same for all its users


class LockFile:
    """The first worker id whose file nobody has locked, for as long as the process (or a fork's child of it) lives.

    The last ID lives in the file: a forked child shares it, and whoever takes the worker next goes on behind it, at
    once after a crash and also if the clock was set back meanwhile. Workers whose last ID lies more than a second ahead
    of the clock are passed over.

    directory: where the files are, a folder for each layout; default $SENET_FAST_LEASES, else /var/tmp/senet_fast_ids.
        All processes of the host that use the layout must name the same one, on a local file system. Containers and
        services with a private /var/tmp need one that they share, or a lease of another kind.
    workers: the worker ids to choose from; default: all of the layout.
    """

    renew_every: float | None = None

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, workers: Iterable[int] | None = None
    ) -> None:
        self._directory = Path(directory or os.environ.get("SENET_FAST_LEASES") or DIRECTORY)
        self._named = named(workers)
        self._fd: int | None = None

    def acquire(self, layout: Layout) -> Grant:
        if self._fd is not None:
            raise LeaseError("this LockFile already holds a worker id; expected one LockFile for each generator")
        folder = self._directory / layout_name(layout)
        for path in (self._directory, folder):
            _make_for_everybody(path)
        now = now_ms()
        workers = candidates(self._named, layout)
        ahead = 0
        for worker_id in workers:
            path = folder / f"{worker_id}"
            fd = _wordfile.open_file(path, for_everybody=True)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                last_ms = _wordfile.last_ms(fd, path, layout)
                if last_ms is None or last_ms <= now + 1000:
                    self._fd = fd
                    return Grant(worker_id, file=(fd, str(path)))
                ahead += 1
            except BlockingIOError:
                pass
            finally:
                if self._fd is None:
                    os.close(fd)
        held = f"{len(workers) - ahead} of {len(workers)} worker ids are held"
        raise LeaseError(
            f"{folder}: {held}" + (f", and the last ID of {ahead} lies ahead of the clock" if ahead else "")
        )

    def renew(self) -> int:
        raise LeaseError("a lock file is not renewed")

    def release(self, unused_from_ms: int) -> None:
        """The last ID is in the file, which forked children may go on to share with the next holder."""
        if self._fd is not None:
            _wordfile.unlock(self._fd)
            os.close(self._fd)
            self._fd = None


def _make_for_everybody(path: Path) -> None:
    try:
        path.mkdir(parents=True)
        path.chmod(0o1777)
    except FileExistsError:
        pass
