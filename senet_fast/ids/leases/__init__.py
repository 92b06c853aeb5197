"""Leases of worker ids, for `Snowflake.acquire(lease)`: who issues as which worker, and until when.

`LockFile` (the default) serves one host and `Environment` reads what the scheduler assigned. `Redis`, `PostgreSQL`,
`ZooKeeper` and `Etcd` serve many hosts; their clients are loaded when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from senet_fast.ids.leases._lease import Grant, Lease, LeaseStatus
from senet_fast.ids.leases.environment import Environment
from senet_fast.ids.leases.lock_file import LockFile

if TYPE_CHECKING:
    from senet_fast.ids.leases.etcd import Etcd as Etcd
    from senet_fast.ids.leases.postgresql import PostgreSQL as PostgreSQL
    from senet_fast.ids.leases.redis import Redis as Redis
    from senet_fast.ids.leases.zookeeper import ZooKeeper as ZooKeeper

__all__ = ["Environment", "Etcd", "Grant", "Lease", "LeaseStatus", "LockFile", "PostgreSQL", "Redis", "ZooKeeper"]


def __getattr__(name: str) -> Any:
    if name not in ("Etcd", "PostgreSQL", "Redis", "ZooKeeper"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)
