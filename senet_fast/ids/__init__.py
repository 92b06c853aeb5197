"""Snowflake IDs: `Snowflake(worker_id=1).next_id()`.

Importing this package imports neither NumPy nor torch; NumPy is imported when an array is first asked for.
"""

from senet_fast.ids._python import PythonSnowflake
from senet_fast.ids.errors import (
    ClockMovedBackwards,
    ClockOutOfRange,
    ForkedError,
    LeaseError,
    LeaseExpired,
    SnowflakeError,
    SnowflakeTimeout,
)
from senet_fast.ids.layout import (
    BAIDU,
    DISCORD,
    INSTAGRAM,
    JS53,
    LEAF,
    LOCAL,
    MASTODON,
    SONYFLAKE,
    SONYFLAKE_V2,
    TWITTER,
    WIDE,
    YITTER,
    DecodedID,
    DecodedIDs,
    Layout,
)
from senet_fast.ids.leases import Grant, Lease, LeaseStatus
from senet_fast.ids.public import PublicID
from senet_fast.ids.strings import from_string, to_string

try:
    from senet_fast.ids._snowflake import Snowflake
except ModuleNotFoundError as error:
    if error.name != "senet_fast.ids._snowflake":
        raise
    raise ImportError(
        "senet_fast.ids is not compiled: run `make build` in its source folder, or for the ID generator alone, without"
        " torch, `SENET_FAST_SE=0 pip install .`"
    ) from None

__all__ = [
    "BAIDU",
    "DISCORD",
    "INSTAGRAM",
    "JS53",
    "LEAF",
    "LOCAL",
    "MASTODON",
    "SONYFLAKE",
    "SONYFLAKE_V2",
    "TWITTER",
    "WIDE",
    "YITTER",
    "ClockMovedBackwards",
    "ClockOutOfRange",
    "DecodedID",
    "DecodedIDs",
    "ForkedError",
    "Grant",
    "Layout",
    "Lease",
    "LeaseError",
    "LeaseExpired",
    "LeaseStatus",
    "PublicID",
    "PythonSnowflake",
    "Snowflake",
    "SnowflakeError",
    "SnowflakeTimeout",
    "from_string",
    "to_string",
]
