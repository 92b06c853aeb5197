"""IDs in Django (`pip install senet-fast[django]`): `id = SnowflakeField(primary_key=True)`."""

from __future__ import annotations

import functools
from typing import Any

from django.db import models
from django.utils.module_loading import import_string

from senet_fast.ids import Snowflake


@functools.cache  # without a lock, which a fork could leave locked: a thread that comes second draws one ID of its own
def default_generator() -> Snowflake:
    """One for the process and its forked children, acquired from this host's lock files at first use."""
    return Snowflake.acquire()


class SnowflakeField(models.BigIntegerField):  # type: ignore[type-arg]
    """A BIGINT whose default is the next ID, drawn in Python, so that a row's ID is known before it is saved.

    generator: the dotted path of a function that returns the Snowflake to draw from; it is called for every ID.
    """

    description = "Snowflake ID"

    def __init__(self, *args: Any, generator: str = "senet_fast.ids.django.default_generator", **options: Any) -> None:
        self.generator = generator
        options["default"] = self.next_id
        options.setdefault("editable", False)
        super().__init__(*args, **options)

    def next_id(self) -> int:
        number: int = import_string(self.generator)().next_id()
        return number

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()
        del options["default"]  # is this object's own
        return name, path, args, {**options, "generator": self.generator}
