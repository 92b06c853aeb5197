"""IDs in Pydantic 2 (`pip install senet-fast[pydantic]`): ints in Python, strings in JSON, where numbers above 2**53
would lose their last digits in JavaScript.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from senet_fast.ids.strings import FORMS, decimal, from_string, to_string

_MAX = (1 << 63) - 1


def _decimal(value: Any) -> Any:
    return decimal("id", value) if isinstance(value, str) else value


def _spelled(value: Any, form: str) -> Any:
    return from_string(value, form) if isinstance(value, str) else value


def id_type(form: str = "int") -> Any:
    """The type of an ID whose JSON is `form`: "int" (a decimal string), "hex", "base32" or "base62"."""
    pattern = r"^[0-9]{1,19}$"
    read: Any = _decimal
    write: Any = str
    if form != "int":
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; expected int, {', '.join(FORMS)}")
        pattern = f"^[{''.join([FORMS[form].digits, *FORMS[form].aliases])}]{{{FORMS[form].width}}}$"
        read, write = partial(_spelled, form=form), partial(to_string, form=form)
    return Annotated[
        int,
        Field(ge=0, le=_MAX, strict=True),
        BeforeValidator(read),
        PlainSerializer(write, return_type=str, when_used="json"),
        WithJsonSchema({"type": "string", "pattern": pattern}),
    ]


SnowflakeID = id_type()
