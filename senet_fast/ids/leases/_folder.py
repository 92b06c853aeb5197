"""The folders of a host's lock files, of this user or shared by a group.

Everything is opened by its folder's descriptor and never through a link; what belongs to somebody else, or may be
written by everybody, is refused by name. Modes are changed only of what this process has just made.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import secrets
import stat
import time
from contextlib import suppress
from typing import NamedTuple

from senet_fast.ids import _system
from senet_fast.ids.errors import LeaseError

_MOST_LINKS = 40
_PATIENCE_S = 5.0  # for a cleaner that is at work in a folder
HOW_ELSE = (
    "; name a folder that this user may write to, by SENET_FAST_LEASES or LockFile(directory), or a worker id, by"
    " Snowflake(worker_id=...) or --worker-id"
)


class Folder(NamedTuple):
    """An open folder. `shared_by`: the group whose members share it, None for its owner's own."""

    fd: int
    path: str
    shared_by: int | None
    owner: int


def user(uid: int) -> str:
    with suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"uid {uid}"


def group(gid: int) -> str:
    with suppress(KeyError):
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    return f"gid {gid}"


def kind_of(mode: int) -> str:
    """What a file is, in words."""
    kinds = {
        stat.S_ISLNK: "a symbolic link",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a FIFO",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a file")


def open_top(path: str) -> Folder:
    """The folder at an absolute path, made with mode 0700 where it is not there. It must be this user's and nobody
    else's to write; or have mode 2770 (setgid), which shares it with its group, and be this user's or root's.
    """
    path = f"/{path.lstrip('/')}"  # os.path keeps two slashes
    if path == "/":
        raise LeaseError(f"the folder of the lock files is the root of all folders{HOW_ELSE}")
    try:
        fd, path = _walk(path)
    except OSError as error:
        raise LeaseError(f"the folder of the lock files, {path}: {error.strerror}{HOW_ELSE}") from None
    return _held_to(fd, path, None)


def _walk(path: str, links: int = 0) -> tuple[int, str]:
    """Opens an absolute path from folder to folder, and makes what is missing; also gives the path without links. Root
    comes only through folders in which nobody else could exchange the next one, and through links of root's own.
    """
    is_root = os.geteuid() == 0
    fd = os.open("/", _system.walk_flag() | os.O_DIRECTORY | os.O_CLOEXEC)
    here = ""
    try:
        for name in path.strip("/").split("/"):
            status = os.fstat(fd)
            if is_root and status.st_uid != 0:
                raise LeaseError(
                    f"{path} lies in {here}, and {user(status.st_uid)} could exchange it; root needs another"
                )
            others = "everybody" if status.st_mode & stat.S_IWOTH else f"group {group(status.st_gid)}"
            may_write = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
            if is_root and status.st_mode & may_write and not status.st_mode & stat.S_ISVTX:
                raise LeaseError(f"{path} lies in {here}, which {others} may write to; root needs another folder")
            within, here = here or "/", f"{here}/{name}"
            if here != path and (target := _link(name, fd, here, is_root)) is not None:
                if links == _MOST_LINKS:
                    raise LeaseError(f"{path} leads through more than {_MOST_LINKS} symbolic links")
                return _walk(os.path.normpath(os.path.join(within, target) + path[len(here) :]), links + 1)
            how = os.O_RDONLY if here == path else _system.walk_flag()
            try:
                below = _open(name, fd, here, how)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                below = _open(name, fd, here, how)
            os.close(fd)
            fd = below
        found, fd = fd, -1
        return found, path
    finally:
        if fd >= 0:
            os.close(fd)


def _link(name: str, within: int, path: str, is_root: bool) -> str | None:
    """Where a symbolic link on the way leads to; None for anything else."""

    def check(status: os.stat_result) -> None:
        if is_root and (status.st_uid != 0 or status.st_nlink > 1):
            raise LeaseError(f"{path} is a symbolic link of {user(status.st_uid)}; root follows none but its own")

    return _system.link(name, within, check)


def open_below(top: Folder, name: str) -> Folder:
    """The folder `name` in `top`, made as `top` is shared where it is not there."""
    path = f"{top.path}/{name}"
    made = True
    try:
        try:
            os.mkdir(name, 0o700 if top.shared_by is None else 0o770, dir_fd=top.fd)
        except FileExistsError:
            made = False
        fd = _open(name, top.fd, path)
    except OSError as error:
        raise LeaseError(f"the folder of the lock files, {path}: {error.strerror}{HOW_ELSE}") from None
    if made and top.shared_by is not None and os.fstat(fd).st_uid == os.geteuid():
        os.fchmod(fd, 0o2770)  # the umask may have taken the group's right to write
    return _held_to(fd, path, top)


def _open(name: str, within: int | None, path: str, how: int = os.O_RDONLY) -> int:
    try:
        return os.open(name, how | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except OSError:
        mode = os.stat(name, dir_fd=within, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is {kind_of(mode)}; expected a folder") from None
        raise


def look_into(name: str, top: Folder | None = None) -> Folder:
    """The folder of lock files `name`, in `top`, whoever's it is; neither made nor locked. FileNotFoundError where
    there is none; LeaseError says what LockFile finds wrong with it.
    """
    path = name if top is None else f"{top.path}/{name}"
    try:
        fd = _open(name, None if top is None else top.fd, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LeaseError(f"the folder of the lock files, {path}: {error.strerror}") from None
    try:
        return _checked(fd, path, top, os.fstat(fd).st_uid)
    except BaseException:
        os.close(fd)
        raise


def _held_to(fd: int, path: str, top: Folder | None) -> Folder:
    """The open folder, locked against cleaners, if its owner and mode are as they must be; else it is closed."""
    try:
        folder = _checked(fd, path, top, os.geteuid())
        _lock_out_cleaners(fd, path)
        return folder
    except BaseException:
        os.close(fd)
        raise


def _checked(fd: int, path: str, top: Folder | None, user_id: int) -> Folder:
    """The open folder, if its owner and mode are as they must be for `user_id`, or for the owner of `top`."""
    if top is not None:
        user_id = top.owner
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode)
    said = f"{path} belongs to {user(status.st_uid)} and {group(status.st_gid)} with mode {mode:04o}"
    shared_by = status.st_gid if mode & 0o2020 == 0o2020 else None
    if mode & 0o002:
        raise LeaseError(f"{said}, so everybody may write to it; expected 0700, or 2770 to share it with a group")
    if mode & 0o020 and shared_by is None:
        raise LeaseError(f"{said}; expected 0700, or 2770 (with setgid) to share worker ids with the group")
    if top is not None and top.shared_by is not None:
        if status.st_gid != top.shared_by:
            raise LeaseError(f"{said}; expected {group(top.shared_by)}, which shares {top.path}")
        shared_by = top.shared_by
    elif status.st_uid != user_id and not (shared_by is not None and status.st_uid == 0):
        raise LeaseError(
            f"{said}; expected one of {user(user_id)}, or one of root's with mode 2770 that a group shares"
        )
    return Folder(fd, path, shared_by, status.st_uid)


def _lock_out_cleaners(fd: int, path: str) -> None:
    """systemd-tmpfiles passes a folder over that it cannot lock for itself alone."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LeaseError(
                    f"{path} has been locked by another process for {_PATIENCE_S} s, as a cleaner does"
                    " while it is at work"
                ) from None
            time.sleep(0.01)


def open_file(folder: Folder, name: str) -> int:
    """The descriptor of the file `name`, made where it is not there. ValueError says why it is none to use: not a
    plain file of this user's or of the group that shares the folder, or one with two names.
    """
    shared = folder.shared_by is not None
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not be waited for
    try:
        try:
            fd = os.open(name, flags, dir_fd=folder.fd)
        except FileNotFoundError:
            try:
                fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o660 if shared else 0o600, dir_fd=folder.fd)
                if shared:
                    os.fchmod(fd, 0o660)
            except FileExistsError:  # another process was first
                fd = os.open(name, flags, dir_fd=folder.fd)
    except OSError as error:
        with suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
            if error.errno != errno.EROFS:  # else no other file can be used either
                raise ValueError(error.strerror if stat.S_ISREG(mode) else f"is {kind_of(mode)}") from None
        raise LeaseError(f"{folder.path}/{name}: {error.strerror}{HOW_ELSE}") from None
    if (why := _why_not(os.fstat(fd), folder)) is None:
        return fd
    os.close(fd)
    raise ValueError(why)


def _why_not(status: os.stat_result, folder: Folder) -> str | None:
    """Why the file is none to use; None if it is one."""
    shared = folder.shared_by is not None
    if not stat.S_ISREG(status.st_mode):
        return f"is {kind_of(status.st_mode)}"
    if status.st_nlink > 1:
        return f"has {status.st_nlink} names"
    if status.st_mode & (0o002 if shared else 0o022):
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    if shared and status.st_gid != folder.shared_by:
        return f"belongs to {group(status.st_gid)}"
    if not shared and status.st_uid != folder.owner:
        return f"belongs to {user(status.st_uid)}"
    return None


class Look(NamedTuple):
    """What has a name in a folder. `fd`: open for reading, None where it is no plain file or may not be used."""

    fd: int | None
    status: os.stat_result
    why_not: str | None


def look_at(folder: Folder, name: str) -> Look:
    """What is there, and why open_file() refuses it. Nothing is made, waited for or changed by that. FileNotFoundError
    where there is nothing.
    """
    status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        return Look(None, status, _why_not(status, folder))
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder.fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        return Look(None, status, error.strerror)
    # open_file() opens it to write; here that would copy the file, where it lies in a lower layer of an overlay.
    if not _system.may_write(fd, name, folder.fd):
        os.close(fd)
        return Look(None, status, os.strerror(errno.EACCES))
    status = os.fstat(fd)
    return Look(fd, status, _why_not(status, folder))


def remove(folder: Folder, name: str, status: os.stat_result) -> None:
    """Removes what `status` is of. LeaseError where something else has its name by now, which keeps it: only what has
    been moved away can be looked at and then deleted without anything coming in between.
    """
    within = {"src_dir_fd": folder.fd, "dst_dir_fd": folder.fd}
    away = f".{name}.removed-{secrets.token_hex(8)}"
    os.rename(name, away, **within)
    moved = os.stat(away, dir_fd=folder.fd, follow_symlinks=False)
    if _identity(moved) == _identity(status):
        return os.unlink(away, dir_fd=folder.fd)
    said = f"{folder.path}/{name} was exchanged meanwhile"
    try:
        os.link(away, name, **within, follow_symlinks=False)  # os.rename() would replace a third one
        os.unlink(away, dir_fd=folder.fd)
    except OSError as error:
        raise LeaseError(f"{said}, and what took its place is {away} now ({error.strerror})") from None
    raise LeaseError(f"{said}, so it was left; look again")


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """A removed file's inode number may be the next one's, of another kind; while the file is open, nobody else's."""
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def is_there(folder: Folder, name: str, fd: int) -> bool:
    """Whether `fd` is still the file of that name in that folder, and the folder still at its path. OSError where this
    process may not look.
    """
    try:
        for here, now in (
            (os.fstat(fd), os.stat(name, dir_fd=folder.fd, follow_symlinks=False)),
            (os.fstat(folder.fd), os.stat(folder.path, follow_symlinks=False)),
        ):
            if _identity(here) != _identity(now):
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
