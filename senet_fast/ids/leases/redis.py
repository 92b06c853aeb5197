"""Worker ids leased from Redis, by redis-py (`pip install senet-fast[redis]`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases._store import StoreLease, Taken

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(ms) return string.format('%.0f', ms) end
"""

# KEYS: until, owner, born. A store that was just made, or that lost its data, may have had holders: it grants nothing
# before their leases have ended.
_TAKE = (
    _NOW
    + """
local ttl, first_ms = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[3]))
if not first_ms then
  first_ms = now + ttl
  redis.call('SET', KEYS[3], text(first_ms))
end
if now < first_ms then return {-1, first_ms - now} end
local soonest = ttl
for i = 3, #ARGV, 2 do
  for worker = tonumber(ARGV[i]), tonumber(ARGV[i + 1]) do
    local till = tonumber(redis.call('HGET', KEYS[1], worker) or first_ms)
    if till <= now then
      redis.call('HSET', KEYS[1], worker, text(now + ttl))
      redis.call('HSET', KEYS[2], worker, ARGV[1])
      return {worker, text(till), text(now + ttl)}
    end
    soonest = math.min(soonest, till - now)
  end
end
return {-1, soonest}
"""
)

_EXTEND = (
    _NOW
    + """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[1] then return false end
local till = math.max(now + ARGV[3], tonumber(redis.call('HGET', KEYS[1], ARGV[2])))
redis.call('HSET', KEYS[1], ARGV[2], text(till))
return text(till)
"""
)

_GIVE_BACK = """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[1] then return end
redis.call('HDEL', KEYS[2], ARGV[2])
local till = math.min(tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[1], ARGV[2])))
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', till))
"""


class Redis(StoreLease):
    """A worker id that a Redis server (6 or newer) leases, by its own clock.

    client: a redis.Redis, or a URL such as "redis://localhost:6379/0".
    prefix: with which the three keys of each layout begin, which must not expire nor be evicted. If they are lost with
        the server's data, the next grant waits for ttl, until all that were given have ended. Two prefixes are two
        stores, which know nothing of each other's holders.
    replicas: how many replicas must have confirmed a grant before it counts. A failover to one that missed a renewal
        would let two holders overlap for less than ttl; Redis does not exclude that altogether.
    """

    def __init__(
        self, client: Any = "redis://localhost", *, prefix: str = "senet_fast", replicas: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        if isinstance(client, str):
            import redis

            client = redis.Redis.from_url(client, socket_timeout=max(1.0, self._ttl_ms / 3000))
        self._client = client
        self._prefix = prefix
        self._replicas = replicas
        self._keys: list[str] = []
        self._script = ""  # that was run last

    @staticmethod
    def acl(prefix: str = "senet_fast", *, replicas: int = 0) -> str:
        """The least that a user needs: the keys and commands for Redis' ACL SETUSER."""
        keys = re.sub(r"([\\*?\[\]])", r"\\\1", prefix)
        commands = "+eval +time +get +set +hget +hset +hdel" + (" +wait" if replicas else "")
        return f"~{keys}:* {commands}"

    def _refusal(self, error: Exception) -> str | None:
        # Inside a script, Redis 7 says no more than the line where the script stood.
        found = re.search(r"can't (?:run|access).*script: .*@user_script:(\d+)", said := str(error))
        if not (found or type(error).__name__ == "NoPermissionError" or "NOPERM" in said):
            return None
        if found and (call := re.search(r"redis\.call\('(\w+)'", self._script.splitlines()[int(found[1]) - 1])):
            said = f"the script may not call {call[1]} ({said})"
        least = self.acl(self._prefix, replicas=self._replicas)
        return f"Redis refuses its user a right: {said}; expected at least {least}"

    def _run(self, script: str, *arguments: object) -> Any:
        self._script = script
        answer = self._client.eval(script, len(self._keys), *self._keys, *arguments)
        if self._replicas and (confirmed := self._client.wait(self._replicas, self._ttl_ms // 3)) < self._replicas:
            raise ConnectionError(f"{confirmed} replicas of Redis confirmed; replicas = {self._replicas}")
        return answer

    def _take(self, layout: str, workers: Sequence[int]) -> Grant | Taken:
        # What is between the first braces decides the slot of a cluster, the same one for the three.
        self._keys = [f"{self._prefix}:{{{layout}}}:{name}" for name in ("until", "owner", "born")]
        whole = isinstance(workers, range) and workers.step == 1 and len(workers) > 0
        ranges = [workers[0], workers[-1]] if whole else [w for w in workers for _ in "12"]
        worker_id, *times = self._run(_TAKE, self._owner, self._ttl_ms, *ranges)
        if worker_id == -1:
            return Taken(times[0] / 1000)
        return Grant(worker_id, int(times[0]), int(times[1]))

    def _extend(self) -> int | None:
        until_ms = self._run(_EXTEND, self._owner, self._worker_id, self._ttl_ms)
        return None if until_ms is None else int(until_ms)

    def _give_back(self, unused_from_ms: int) -> None:
        self._run(_GIVE_BACK, self._owner, self._worker_id, unused_from_ms)
