"""IDs in Pydantic 2 (`pip install senet-fast[pydantic]`): ints in Python, strings in JSON, where numbers above 2**53
would lose their last digits in JavaScript.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from senet_fast.ids.strings import codec


def id_type(form: str = "int") -> Any:
    """The type of an ID whose JSON is `form`: "int" (a decimal string), "hex", "base32" or "base62".

    In Python it takes ints, NumPy's too, and such strings, and holds an int.
    """
    read, write, pattern = codec(form)
    return Annotated[
        int,
        BeforeValidator(read),
        PlainSerializer(write, return_type=str, when_used="json"),
        WithJsonSchema({"type": "string", "pattern": pattern}),
    ]


SnowflakeID = id_type()
