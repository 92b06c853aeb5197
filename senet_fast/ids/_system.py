"""What the IDs ask of the system beyond POSIX: Linux's own calls, and what stands in for them elsewhere.

docs/design/ids.md says why each stand-in is safe, and what is refused because none would be. LINUX is a variable, so
that the tests can take it away.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LINUX = sys.platform == "linux"
UNKNOWN_BOOT = "unknown"
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # the constant of Linux


def proc(path: str) -> str:
    """A file of Linux's /proc; OSError where there is none. Bytes that are no UTF-8 come through os.fsencode()."""
    if not LINUX:
        raise FileNotFoundError(f"no /proc/{path} on {sys.platform}")
    return Path("/proc", path).read_bytes().decode(errors="surrogateescape")


def sees_all_processes() -> bool:
    """Whether /proc tells of all: another namespace shows the locks of its own living processes alone."""
    return LINUX and os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def runs(pid: int) -> bool:
    """Whether a process that /proc named is still there."""
    return os.path.exists(f"/proc/{pid}")


def boot() -> str:
    """What names this run of the kernel: a file that the last run did not get to write back is then recognised."""
    with suppress(OSError):  # not Linux, or a container hides it: the system is asked below, and may say nothing
        return proc("sys/kernel/random/boot_id").strip()
    return _sysctl("kern.bootsessionuuid") or UNKNOWN_BOOT


def _sysctl(name: str) -> str | None:
    """A text that macOS (or another BSD) has under this name."""
    import ctypes

    with suppress(OSError, AttributeError):  # no such function in libc
        ask = ctypes.CDLL(None, use_errno=True).sysctlbyname
        text = ctypes.create_string_buffer(64)
        size = ctypes.c_size_t(len(text))
        if ask(name.encode(), text, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return text.value.decode()
    return None


def walk_flag() -> int:
    """How a folder on the way is opened: for its name alone, where that can be; else it must be readable, too."""
    return os.O_PATH if LINUX else os.O_RDONLY


def link(name: str, within: int, check: Callable[[os.stat_result], object]) -> str | None:
    """Where a symbolic link leads to, once `check` has seen whose it is; None for anything else."""
    try:
        if LINUX:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
            try:
                status = os.fstat(fd)
                if not stat.S_ISLNK(status.st_mode):
                    return None
                check(status)
                return os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)
        status = os.stat(name, dir_fd=within, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            return None
        check(status)
        target = os.readlink(name, dir_fd=within)
        check(os.stat(name, dir_fd=within, follow_symlinks=False))
        return target
    except FileNotFoundError:
        return None


def may_write(fd: int, name: str, within: int) -> bool:
    """Whether this process may write to the open file, which has that name in that folder."""
    if LINUX:
        return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
    return os.access(name, os.W_OK, dir_fd=within, effective_ids=True)


# ---- locks -----------------------------------------------------------------------------------------------------------
# flock() is the same everywhere: the lock is one of the open file, which a forked child has in common with its parent.
# Only Linux has, beside it and without regard to it, locks of an open file on a range of bytes.


def why_not_shared() -> str | None:
    """Why several processes that did not fork from each other cannot hold a lock file together; None if they can."""
    return None if LINUX else _why_not("a worker id that processes share by a lock file (shared=True)")


def why_no_file_of_the_twin() -> str | None:
    """Why PythonSnowflake, which locks a file for each claim, cannot keep its last ID in a named one."""
    return None if LINUX else _why_not("PythonSnowflake with a file or a lock file (Snowflake has both)")


def _why_not(what: str) -> str:
    return f"{what} needs the locks of Linux (F_OFD_SETLK), and this is {sys.platform}"


@contextmanager
def alone(fd: int, at: int) -> Iterator[None]:
    """Among all that come here with a descriptor of the same file, those included that hold its flock together. Where
    nobody does (why_not_shared), whoever comes here holds the flock alone already.
    """
    if not LINUX:
        yield
        return
    _lock_range(fd, fcntl.F_WRLCK, at, 1)
    try:
        yield
    finally:
        _lock_range(fd, fcntl.F_UNLCK, at, 1)


def lock_claims(fd: int, kind: int, bytes_: int) -> None:
    """Locks or unlocks (F_WRLCK, F_UNLCK) the front of a file for the claims of one process at a time. Elsewhere than
    on Linux the file must be one that no other descriptor in the process is of, since closing that would unlock it.
    """
    if LINUX:
        _lock_range(fd, kind, 0, bytes_)
    else:
        fcntl.lockf(fd, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX, bytes_)


def _lock_range(fd: int, kind: int, at: int, bytes_: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi", kind, os.SEEK_SET, at, bytes_, 0))


def after_fork(fd: int) -> int | None:
    """A descriptor whose locks are this process's own, for one that it has from its parent; None if that one is so."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC) if LINUX else None
