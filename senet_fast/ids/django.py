"""IDs in Django (`pip install senet-fast[django]`): `id = SnowflakeField(primary_key=True)`, or for all models
`DEFAULT_AUTO_FIELD = "senet_fast.ids.django.SnowflakeAutoField"`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.utils import IntegrityError
from django.utils.module_loading import import_string

from senet_fast.ids import Snowflake


@functools.cache  # without a lock, which a fork could leave locked: a thread that comes second draws one ID of its own
def default_generator() -> Snowflake:
    """One for the process and its forked children, acquired from this host's lock files at first use."""
    return Snowflake.acquire()


class _Drawn:
    """What the fields share: IDs of `generator`, unless the user gave another default."""

    def __init__(self, *args: Any, generator: str = "senet_fast.ids.django.default_generator", **options: Any) -> None:
        self.generator = generator
        self.draws = "default" not in options
        options.setdefault("default", self.next_id)
        super().__init__(*args, **options)

    def next_id(self) -> int:
        number: int = import_string(self.generator)().next_id()
        return number

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()  # type: ignore[misc]
        if self.draws:
            options.pop("default", None)
        return name, path, args, {**options, "generator": self.generator}

    def get_internal_type(self) -> str:
        return "BigIntegerField"


class SnowflakeField(_Drawn, models.BigIntegerField):  # type: ignore[type-arg,misc]
    """A BIGINT whose default is the next ID, drawn in Python, so that a row's ID is known before it is saved.

    generator: the dotted path of a function that returns the Snowflake to draw from; it is called for every ID.
    Every option of Django's fields holds; with `default=` (None, for example) the field draws nothing by itself.

    Migrations call a default once for all rows of a table. Where several rows would get one ID so, they are refused
    (sqlmigrate runs nothing and asks no table: what it prints has one number for all rows).
    """

    description = "Snowflake ID"

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("editable", False)
        super().__init__(*args, **options)

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()
        return name, path, args, {**options, "editable": self.editable}

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        # Whoever saves a row comes here, too; only a migration fills rows with what it asks of this method.
        caller: Any = sys._getframe(1)
        while caller.f_code.co_name == "get_db_prep_save":  # of a subclass
            caller = caller.f_back
        asked = caller.f_code is BaseDatabaseSchemaEditor.effective_default.__code__
        if asked and callable(self.default) and not caller.f_locals["self"].collect_sql:
            self._refuse_one_for_many(connection)
        return super().get_db_prep_save(value, connection)

    def _refuse_one_for_many(self, connection: Any) -> None:
        """Raises where several rows would get one default: rows without the column, or with NULL in it."""
        table, column = map(connection.ops.quote_name, (self.model._meta.db_table, self.column))
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table} WHERE 1 = 0")
            there = self.column.lower() in [described[0].lower() for described in cursor.description]
            unset = f"WHERE {column} IS NULL" if there else ""
            cursor.execute(f"SELECT 1 FROM {table} {unset} {connection.ops.limit_offset_sql(0, 2)}")
            if len(cursor.fetchall()) > 1:
                raise IntegrityError(
                    f"{table} has several rows, and this migration would give all of them one {self.name}, since Django"
                    " calls a default once. Add the field with null=True, default=None, give each row its own ID in"
                    " RunPython, then alter the field: see docs/ids.md"
                )


class SnowflakeAutoField(_Drawn, models.BigAutoField):  # type: ignore[type-arg,misc]
    """The primary key of models that name none. As with every auto field, it is None until the row is saved.

    For another generator in all models let DEFAULT_AUTO_FIELD name a subclass whose __init__ passes it.
    """

    description = "Snowflake ID"
    db_returning = False  # since Python has drawn it

    def get_default(self) -> Any:
        # The default is there, and None: save() of a new row then tries no UPDATE first.
        return None if self.draws else super().get_default()

    def get_pk_value_on_save(self, instance: Any) -> Any:
        return self.next_id() if self.draws else super().get_pk_value_on_save(instance)
