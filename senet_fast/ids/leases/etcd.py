"""Worker ids leased from etcd, by its HTTP/JSON gateway: no client library is needed."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from senet_fast.ids.leases._held import Grant
from senet_fast.ids.leases._store import StoreLease, Taken, now_ms


class Etcd(StoreLease):
    """A worker id whose holder is a key that lives as long as an etcd lease, and whose end is a key that stays.

    The end is told by the holder's clock, since etcd has none. A worker id is taken over when its holder's key has gone
    and its end has passed by the clock of whoever takes it. etcd (3.4 or newer) rounds leases up to whole seconds, and
    to 2 at least.

    url: of one server, such as "http://localhost:2379".
    prefix: of the keys.
    """

    def __init__(self, url: str = "http://localhost:2379", *, prefix: str = "senet_fast/", **options: Any) -> None:
        super().__init__(**options)
        self._url = url.rstrip("/")
        self._prefix = prefix
        self._key = ""
        self._lease = ""
        self._until_ms = 0

    def _call(self, method: str, **request: Any) -> Any:
        body = json.dumps(request).encode()
        message = urllib.request.Request(f"{self._url}/v3/{method}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(message, timeout=max(1.0, self._ttl_ms / 3000)) as answer:
            return json.load(answer)

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        keys = {worker_id: f"{self._prefix}{layout}/{worker_id}" for worker_id in workers}
        folder = f"{self._prefix}{layout}/"
        found = self._call("kv/range", key=_text(folder), range_end=_text(folder[:-1] + "0"))  # "0" comes after "/"
        pairs = {_plain(pair["key"]): pair for pair in found.get("kvs", [])}
        soonest_ms = self._ttl_ms
        for worker_id, key in keys.items():
            if f"{key}/owner" in pairs:
                continue
            before = pairs.get(f"{key}/until", {})
            from_ms, now = int(_plain(before.get("value", "")) or 0), now_ms()
            if from_ms > now:
                soonest_ms = min(soonest_ms, from_ms - now)
                continue
            self._lease = self._call("lease/grant", TTL=-(-self._ttl_ms // 1000))["ID"]
            self._key, self._until_ms = key, now + self._ttl_ms
            done = self._call(
                "kv/txn",
                compare=[
                    {"key": _text(f"{key}/owner"), "target": "CREATE", "create_revision": 0},
                    {"key": _text(f"{key}/until"), "target": "MOD", "mod_revision": before.get("mod_revision", 0)},
                ],
                success=[
                    {"request_put": {"key": _text(f"{key}/owner"), "value": _text(self._owner), "lease": self._lease}},
                    self._put_until(self._until_ms),
                ],
            )
            if done.get("succeeded"):
                return Grant(worker_id, from_ms, self._until_ms)
            self._revoke()
        return Taken(min(soonest_ms, 100) / 1000)

    def _put_until(self, until_ms: int) -> dict[str, Any]:
        return {"request_put": {"key": _text(f"{self._key}/until"), "value": _text(str(until_ms))}}

    def _own(self) -> list[dict[str, Any]]:
        return [{"key": _text(f"{self._key}/owner"), "target": "VALUE", "value": _text(self._owner)}]

    def _extend(self) -> int | None:
        self._call("lease/keepalive", ID=self._lease)
        self._until_ms = max(self._until_ms, now_ms() + self._ttl_ms)
        done = self._call("kv/txn", compare=self._own(), success=[self._put_until(self._until_ms)])
        return self._until_ms if done.get("succeeded") else None

    def _give_back(self, unused_from_ms: int) -> None:
        put = self._put_until(min(self._until_ms, unused_from_ms))
        drop = {"request_delete_range": {"key": _text(f"{self._key}/owner")}}
        self._call("kv/txn", compare=self._own(), success=[put, drop])
        self._revoke()

    def _revoke(self) -> None:
        try:
            self._call("lease/revoke", ID=self._lease)
        except urllib.error.HTTPError as error:
            if error.code != 404:  # it has ended by itself
                raise


def _text(plain: str) -> str:
    return base64.b64encode(plain.encode()).decode()


def _plain(text: str) -> str:
    return base64.b64decode(text).decode()
