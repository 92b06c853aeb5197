"""Worker ids leased from ZooKeeper, by kazoo (`pip install senet-fast[zookeeper]`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from senet_fast.ids.leases._held import Grant
from senet_fast.ids.leases._store import StoreLease, Taken, now_ms


class ZooKeeper(StoreLease):
    """A worker id whose holder is an ephemeral node of a ZooKeeper server, and whose end is a persistent one.

    The end is told by the holder's clock, since ZooKeeper has none. A worker id is taken over when its holder's session
    has ended and its end has passed by the clock of whoever takes it.

    client: a started kazoo.client.KazooClient, which stays yours to stop.
    path: under which the nodes are made.
    """

    def __init__(self, client: Any, *, path: str = "/senet_fast", **options: Any) -> None:
        super().__init__(**options)
        self._client = client
        self._path = path.rstrip("/")
        self._node = ""
        self._version = 0
        self._until_ms = 0

    def _do(self, request: str, *arguments: Any, **options: Any) -> Any:
        """With an end: kazoo's own calls wait as long as the connection is down."""
        return getattr(self._client, f"{request}_async")(*arguments, **options).get(timeout=self._ttl_ms / 1000)

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        from kazoo.exceptions import NodeExistsError, NoNodeError

        soonest_ms = self._ttl_ms
        for worker_id in workers:
            self._node = f"{self._path}/{layout}/{worker_id}"
            owner = f"{self._node}/owner"
            try:
                self._do("create", owner, self._owner.encode(), ephemeral=True, makepath=True)
            except NodeExistsError:
                continue
            try:
                data, status = self._do("get", f"{self._node}/until")
            except NoNodeError:
                self._do("create", f"{self._node}/until", b"0")
                data, status = self._do("get", f"{self._node}/until")
            from_ms, now = int(data), now_ms()
            if from_ms > now:
                self._do("delete", owner)
                soonest_ms = min(soonest_ms, from_ms - now)
                continue
            self._version = status.version
            self._until_ms = from_ms
            if (until_ms := self._extend()) is not None:
                return Grant(worker_id, from_ms, until_ms)
        return Taken(min(soonest_ms, 100) / 1000)

    def _extend(self) -> int | None:
        from kazoo.exceptions import BadVersionError, NoNodeError

        self._until_ms = max(self._until_ms, now_ms() + self._ttl_ms)
        for _ in range(2):
            try:  # only over what this holder wrote last, so that whoever took over is safe from a late message
                written = self._do("set", f"{self._node}/until", b"%d" % self._until_ms, self._version)
            except BadVersionError:
                pass
            else:
                self._version = written.version
                return self._until_ms
            # While this holder's node is there, nobody took over: the answer to its own last write got lost.
            try:
                data, status = self._do("get", f"{self._node}/until")
                owner, _ = self._do("get", f"{self._node}/owner")
            except NoNodeError:
                return None
            if owner != self._owner.encode():
                return None
            self._version, self._until_ms = status.version, max(self._until_ms, int(data))
        return None

    def _give_back(self, unused_from_ms: int) -> None:
        from kazoo.exceptions import BadVersionError, NoNodeError

        try:
            self._do("set", f"{self._node}/until", b"%d" % min(self._until_ms, unused_from_ms), self._version)
            data, _ = self._do("get", f"{self._node}/owner")
            if data == self._owner.encode():
                self._do("delete", f"{self._node}/owner")
        except (BadVersionError, NoNodeError):
            pass
