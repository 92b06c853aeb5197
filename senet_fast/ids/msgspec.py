"""IDs in msgspec (`pip install senet-fast[msgspec]`): ints in Python, strings in JSON and MessagePack.

msgspec.json.encode(order, enc_hook=enc_hook)
msgspec.json.decode(text, type=Order, dec_hook=dec_hook)
"""

from __future__ import annotations

from typing import Any, ClassVar

from senet_fast.ids._numbers import check_int
from senet_fast.ids.strings import codec


class SnowflakeID(int):
    """An ID that msgspec hands to the hooks below: `SnowflakeID(ids.next_id())`. Plain ints it would write as numbers.

    form: of the string: "int" (decimal), or in a subclass "hex", "base32" or "base62".
    """

    form: ClassVar[str] = "int"

    def __new__(cls, number: int) -> SnowflakeID:
        return super().__new__(cls, check_int("id", number, 0, (1 << 63) - 1, " (63 bits)"))


def enc_hook(value: Any) -> str:
    if isinstance(value, SnowflakeID):
        return codec(value.form).write(value)
    raise NotImplementedError(f"objects of type {type(value).__name__} are not supported")


def dec_hook(kind: type, value: Any) -> Any:
    if issubclass(kind, SnowflakeID):
        return kind(codec(kind.form).read(value))
    raise NotImplementedError(f"objects of type {kind.__name__} are not supported")
