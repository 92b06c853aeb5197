"""Worker ids leased from ZooKeeper, by kazoo (`pip install senet-fast[zookeeper]`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases._store import StoreLease, Taken, now_ms

_GIVE_BACK_TTLS = 100  # how long a server that does not answer is asked to take a worker id back


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
        self._lost = ""  # the owner of a try that ended in an error: its node may live as long as the session

    def _do(self, request: str, *arguments: Any, **options: Any) -> Any:
        """With an end: kazoo's own calls wait as long as the connection is down."""
        return getattr(self._client, f"{request}_async")(*arguments, **options).get(timeout=self._ttl_ms / 1000)

    def _refusal(self, error: Exception) -> str | None:
        from kazoo.exceptions import AuthFailedError, NoAuthError

        if not isinstance(error, (AuthFailedError, NoAuthError)):
            return None
        return (
            f"ZooKeeper refuses its client a right ({type(error).__name__}); expected a KazooClient whose auth_data may"
            f" create, delete, read and write under {self._path}, and whose default_acl lets all holders do so"
        )

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        from kazoo.exceptions import NodeExistsError, NoNodeError

        lost, self._lost = self._lost, self._owner
        soonest_ms = self._ttl_ms
        for worker_id in workers:
            self._node = f"{self._path}/{layout}/{worker_id}"
            owner = f"{self._node}/owner"
            try:
                self._do("create", owner, self._owner.encode(), ephemeral=True, makepath=True)
            except NodeExistsError:
                if not (lost and self._is_owner(lost)):
                    continue
                self._do("set", owner, self._owner.encode())
            granted = False
            try:
                try:
                    data, status = self._do("get", f"{self._node}/until")
                except NoNodeError:
                    self._do("create", f"{self._node}/until", b"0")
                    data, status = self._do("get", f"{self._node}/until")
                from_ms, now = int(data), now_ms()
                # The last holder may be renewing right now, though its session has ended: then the write fails.
                granted = from_ms <= now and self._write(now + self._ttl_ms, status.version)
            finally:
                if not granted:
                    with suppress(NoNodeError):
                        self._do("delete", owner)
            if granted:
                self._lost = ""
                return Grant(worker_id, from_ms, self._until_ms)
            soonest_ms = min(soonest_ms, max(0, from_ms - now))
        self._lost = ""
        return Taken(min(soonest_ms, 100) / 1000)

    def _is_owner(self, owner: str) -> bool:
        from kazoo.exceptions import NoNodeError

        try:
            data, _ = self._do("get", f"{self._node}/owner")
        except NoNodeError:
            return False
        return bool(data == owner.encode())

    def _write(self, until_ms: int, version: int) -> bool:
        """Only over what the writer saw: of a holder and whoever takes over, one fails."""
        from kazoo.exceptions import BadVersionError

        try:
            written = self._do("set", f"{self._node}/until", b"%d" % until_ms, version)
        except BadVersionError:
            return False
        self._version, self._until_ms = written.version, until_ms
        return True

    def _extend(self) -> int | None:
        from kazoo.exceptions import NoNodeError

        until_ms = max(self._until_ms, now_ms() + self._ttl_ms)
        if self._write(until_ms, self._version):
            return until_ms
        # While this holder's node is there, nobody took over: the answer to its own last write got lost.
        try:
            data, status = self._do("get", f"{self._node}/until")
        except NoNodeError:
            return None
        until_ms = max(until_ms, int(data))
        return until_ms if self._is_owner(self._owner) and self._write(until_ms, status.version) else None

    def _give_back(self, unused_from_ms: int) -> None:
        """Tried again while the server does not answer: the owner's node lives as long as the client does, not only as
        long as the lease.
        """
        from kazoo.exceptions import ConnectionClosedError, NoNodeError

        owner, until_ms = self._owner, min(self._until_ms, unused_from_ms)
        deadline = time.monotonic() + _GIVE_BACK_TTLS * self._ttl_ms / 1000
        while self._owner == owner:  # else this lease was acquired again meanwhile
            try:
                with suppress(NoNodeError):
                    self._write(until_ms, self._version)
                    if self._is_owner(owner):
                        self._do("delete", f"{self._node}/owner")
                self._lost = ""
                return
            except ConnectionClosedError:  # by whoever stopped the client, and with it the session and its nodes
                raise
            except Exception as error:
                self._lost = owner  # this lease may go on from its own node
                if self._refusal(error) or time.monotonic() > deadline:
                    raise
                time.sleep(self._ttl_ms / 10_000)
