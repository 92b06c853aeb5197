"""Whether all processes of this host see the folder that lock files are in by default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from senet_fast.ids import _system


class Mount(NamedTuple):
    device: str
    root: str
    """What of the file system is mounted."""
    point: str
    kind: str


def mounts(process: str) -> list[Mount]:
    """The mounts that a process sees; none where that is not told."""
    try:
        lines = _system.proc(f"{process}/mountinfo").splitlines()
    except OSError:
        return []
    fields = [line.split(" ") for line in lines]
    return [Mount(line[2], line[3], line[4], line[line.index("-") + 1]) for line in fields]


def covering(path: str, seen: Iterable[Mount]) -> Mount | None:
    """The mount that `path` lies in: of the longest mount points the last one."""
    found = None
    for mount in seen:
        inside = mount.point == "/" or path == mount.point or path.startswith(f"{mount.point}/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def why_private(path: str, environ: Mapping[str, str] = os.environ, root: str = "/") -> str | None:
    """What says that other processes of this host see another folder at `path`; None if nothing does."""
    for marker in (".dockerenv", "run/.containerenv"):
        if Path(root, marker).exists():
            return f"this is a container ({Path(root, marker)} exists)"
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        if environ.get(name):
            return f"this is a container ({name} is set)"
    seen = mounts("self")
    if (whole := covering("/", seen)) is not None and whole.kind == "overlay":
        return "this is a container (its root is an overlay)"
    mine, first = (covering(os.path.realpath(path), of) for of in (seen, mounts("1")))
    if mine is not None and first is not None and mine != first:
        return f"{mine.point} is a mount of this service's own (PrivateTmp, or another mount namespace)"
    return None
