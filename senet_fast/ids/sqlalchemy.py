"""IDs in SQLAlchemy 2 (`pip install senet-fast[sqlalchemy]`): `mapped_column(SnowflakeID, default=ids.next_id)`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, and_
from sqlalchemy.types import TypeDecorator

from senet_fast.ids._numbers import check_int
from senet_fast.ids.layout import Layout


class SnowflakeID(TypeDecorator[int]):
    """A BIGINT that holds IDs: what is no int of 0 to 2**63 - 1 is refused before the database sees it."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> int | None:
        return None if value is None else check_int("id", value, 0, (1 << 63) - 1)


def in_time_range(column: Any, begin: int | datetime, end: int | datetime, layout: Layout) -> ColumnElement[bool]:
    """The condition that an ID's time lies in [begin, end), by the column's index. Times as in Layout.min_id."""
    first, past = layout.min_id(begin), layout.min_id(end)
    return and_(column >= first, column <= past - 1) if past else column < 0
