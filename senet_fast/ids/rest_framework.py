"""IDs in Django REST framework (`pip install senet-fast[rest_framework]`): strings in JSON, where numbers above 2**53
would lose their last digits in JavaScript.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from senet_fast.ids.django import SnowflakeAutoField, SnowflakeField
from senet_fast.ids.strings import codec


class SnowflakeIDField(serializers.IntegerField):  # type: ignore[misc]
    """An ID, as a string of `form` in JSON: "int" (decimal), "hex", "base32" or "base62". It reads ints, too."""

    default_error_messages = {"invalid": "{reason}."}  # noqa: RUF012 - as the base class has it

    def __init__(self, *, form: str = "int", **options: Any) -> None:
        self.read, self.write, _ = codec(form)
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> int:
        try:
            return self.read(data)
        except ValueError as error:
            self.fail("invalid", reason=error)
            raise

    def to_representation(self, value: int) -> str:
        return self.write(value)


class _ToIDField(serializers.SlugRelatedField):  # type: ignore[misc]
    """A foreign key whose to_field is a SnowflakeField."""

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(SnowflakeIDField().to_internal_value(data))

    def to_representation(self, value: Any) -> str:
        return codec("int").write(super().to_representation(value))


class SnowflakeSerializerMixin:
    """Put before ModelSerializer, it gives SnowflakeIDField to the model's IDs, and to foreign keys that hold such."""

    serializer_field_mapping = {  # noqa: RUF012 - as the base class has it
        **serializers.ModelSerializer.serializer_field_mapping,
        SnowflakeField: SnowflakeIDField,
        SnowflakeAutoField: SnowflakeIDField,
    }

    def build_relational_field(self, field_name: str, relation_info: Any) -> Any:
        kind, options = super().build_relational_field(field_name, relation_info)  # type: ignore[misc]
        meta = relation_info.related_model._meta
        key = meta.get_field(options["slug_field"]) if "slug_field" in options else meta.pk
        while key.remote_field:  # the link to a parent, of multi-table inheritance
            key = key.remote_field.model._meta.pk
        if isinstance(key, (SnowflakeField, SnowflakeAutoField)):
            if issubclass(kind, serializers.PrimaryKeyRelatedField):
                options["pk_field"] = SnowflakeIDField()
            elif issubclass(kind, serializers.SlugRelatedField):
                kind = _ToIDField
        return kind, options

    def build_nested_field(self, field_name: str, relation_info: Any, nested_depth: int) -> Any:
        kind, options = super().build_nested_field(field_name, relation_info, nested_depth)  # type: ignore[misc]
        return type(kind.__name__, (SnowflakeSerializerMixin, kind), {"Meta": kind.Meta}), options
