"""Worker ids leased from etcd, by its HTTP/JSON gateway: no client library is needed."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases._store import StoreLease, Taken, now_ms

if TYPE_CHECKING:
    from ssl import SSLContext

# Codes of gRPC, which etcd's gateway answers with.
_INVALID, _DEADLINE, _NOT_FOUND, _DENIED, _PRECONDITION, _UNAVAILABLE, _NO_TOKEN = 3, 4, 5, 7, 9, 14, 16


class _Answer(ConnectionError):
    """What a server said instead of what it was asked for."""

    def __init__(self, url: str, method: str, code: int, said: str) -> None:
        super().__init__(f"etcd at {url} answered {method} with: {said}")
        self.code, self.said = code, said


class Etcd(StoreLease):
    """A worker id whose holder is a key that lives as long as an etcd lease, and whose end is a key that stays.

    The end is told by the holder's clock, since etcd has none. A worker id is taken over when its holder's key has gone
    and its end has passed by the clock of whoever takes it. etcd (3.4 or newer) rounds leases up to whole seconds, and
    to 2 at least.

    url: of one server, such as "http://localhost:2379", or several of one cluster. Where one does not answer, the next
        is asked; a third of ttl is divided among them.
    prefix: of the keys. A user needs the right to read and write all that begin with it.
    user, password: whom etcd knows, where its authentication is enabled. Their token is renewed when it has expired.
    ssl: for https with a certificate authority of your own, or a client's certificate:
        ssl.create_default_context(cafile=...), then its load_cert_chain(...).
    """

    def __init__(
        self,
        url: str | Iterable[str] = "http://localhost:2379",
        *,
        prefix: str = "senet_fast/",
        user: str | None = None,
        password: str | None = None,
        ssl: SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._urls = [_checked(one) for one in ([url] if isinstance(url, str) else url)]
        if not self._urls:
            raise ValueError("url is empty; expected a URL such as 'http://localhost:2379', or several")
        if ssl is not None and not all(one.startswith("https:") for one in self._urls):
            raise ValueError(f"ssl with {', '.join(self._urls)}; expected https:// in front of each, where it is used")
        if (user is None) != (password is None):
            raise ValueError(f"{'user' if user is None else 'password'} is missing; expected both user and password")
        self._login = None if user is None else {"name": user, "password": password}
        self._token: str | None = None
        self._ssl = ssl
        self._prefix = prefix
        self._key = ""
        self._lease = ""
        self._until_ms = 0

    def _call(self, method: str, **request: Any) -> Any:
        deadline = time.monotonic() + max(1.0, self._ttl_ms / 3000)
        if self._login is None:
            return self._ask(deadline, method, request)
        if self._token is not None:
            try:
                return self._ask(deadline, method, request)
            except _Answer as answer:  # the token has expired, or rights were changed since it was given
                if answer.code != _NO_TOKEN and "revision of auth store" not in answer.said:
                    raise
                self._token = None
        self._token = self._ask(deadline, "auth/authenticate", self._login)["token"]
        return self._ask(deadline, method, request)

    def _ask(self, deadline: float, method: str, request: dict[str, Any]) -> Any:
        """Asks the server that answered last, then the others by turns; they share the time that is left."""
        causes = []
        for left in range(len(self._urls), 0, -1):
            url = self._urls[0]
            try:
                return self._post(url, max(0.05, (deadline - time.monotonic()) / left), method, request)
            except _Answer as answer:
                if answer.code not in (_UNAVAILABLE, _DEADLINE):
                    raise
                causes.append(f"{url}: {answer.said}")
            except (OSError, ValueError, http.client.HTTPException) as error:
                causes.append(f"{url}: {getattr(error, 'reason', None) or str(error) or type(error).__name__}")
            self._urls.append(self._urls.pop(0))
        raise ConnectionError(f"no etcd answers {method}: {'; '.join(causes)}")

    def _post(self, url: str, timeout: float, method: str, request: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": self._token} if self._token else {})}
        message = urllib.request.Request(f"{url}/v3/{method}", json.dumps(request).encode(), headers)
        try:
            with urllib.request.urlopen(message, timeout=timeout, context=self._ssl) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                told = _json(error.read())
            raise _Answer(
                url, method, told.get("code", _UNAVAILABLE), told.get("message") or told.get("error") or str(error)
            ) from None
        if "error" in told:  # of a stream, whose status was sent before
            raise _Answer(url, method, told["error"].get("grpc_code", _UNAVAILABLE), told["error"].get("message", ""))
        return told

    def _refusal(self, error: Exception) -> str | None:
        if not isinstance(error, _Answer):
            return None
        if error.code == _DENIED:
            role = f"etcdctl role grant-permission ROLE --prefix=true readwrite {self._prefix}"
            return f"{error}; expected a role of the user with the right to read and write all keys of prefix: {role}"
        if error.code in (_INVALID, _PRECONDITION, _NO_TOKEN):  # no user, a wrong one, or one where etcd asks for none
            given = "none" if self._login is None else f"user={self._login['name']!r}"
            return f"{error}; expected user= and password= as etcd knows them, and got {given}"
        return None

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
                failure=[{"request_range": {"key": _text(f"{key}/owner")}}],
            )
            # A server that did not answer may have done it, before the next one was asked.
            if done.get("succeeded") or self._owner in _values(done):
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
        # Only forwards: a message that was given up for lost may arrive behind later ones.
        later = {
            "key": _text(f"{self._key}/until"),
            "target": "VALUE",
            "result": "LESS",
            "value": _text(str(self._until_ms + 1)),
        }
        done = self._call("kv/txn", compare=[*self._own(), later], success=[self._put_until(self._until_ms)])
        return self._until_ms if done.get("succeeded") else None

    def _give_back(self, unused_from_ms: int) -> None:
        put = self._put_until(min(self._until_ms, unused_from_ms))
        drop = {"request_delete_range": {"key": _text(f"{self._key}/owner")}}
        self._call("kv/txn", compare=self._own(), success=[put, drop])
        self._revoke()

    def _revoke(self) -> None:
        try:
            self._call("lease/revoke", ID=self._lease)
        except _Answer as answer:
            if answer.code != _NOT_FOUND:  # it has ended by itself
                raise


def _text(plain: str) -> str:
    return base64.b64encode(plain.encode()).decode()


def _plain(text: str) -> str:
    return base64.b64decode(text).decode()


def _values(done: Any) -> list[str]:
    """What the ranges of a transaction found."""
    found = [answer.get("response_range", {}).get("kvs", []) for answer in done.get("responses", [])]
    return [_plain(pair["value"]) for pairs in found for pair in pairs]


def _checked(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.password is not None or parts.username is not None:
        raise ValueError(f"url names a user of {parts.hostname}; expected user= and password=, which no message shows")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url is {url!r}; expected one such as 'http://localhost:2379'")
    return url.rstrip("/")


def _json(body: bytes) -> Any:
    """What an answer says; {} where it is no JSON object, such as a proxy's page."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
