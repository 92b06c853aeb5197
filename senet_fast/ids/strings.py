"""IDs as strings of one width that sort like the IDs: hexadecimal, Crockford's base 32, base 62."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

from senet_fast.ids._numbers import check_int, decimal

_DIGITS = "0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Form(NamedTuple):
    """One way to write a non-negative int64: digits in the order of ASCII, and what else is read as one of them."""

    digits: str
    width: int
    aliases: dict[str, str]
    spec: str = ""  # what format() calls it, if it does


# A form is one row.
FORMS = {
    "hex": Form(_DIGITS + "abcdef", 16, {c: c.lower() for c in "ABCDEF"}, "016x"),
    # Without I, L, O and U; small letters and what looks alike are read, too.
    "base32": Form(
        "0123456789ABCDEFGHJKMNPQRSTVWXYZ",
        13,
        {
            **{c.lower(): c for c in "ABCDEFGHJKMNPQRSTVWXYZ"},
            "I": "1",
            "i": "1",
            "L": "1",
            "l": "1",
            "O": "0",
            "o": "0",
        },
    ),
    "base62": Form(_DIGITS + _UPPER + _UPPER.lower(), 11, {}),
}
_VALUES = {
    name: {c: form.digits.index(form.aliases.get(c, c)) for c in form.digits + "".join(form.aliases)}
    for name, form in FORMS.items()
}
_MAX = (1 << 63) - 1


def _form(name: str) -> Form:
    if name not in FORMS:
        raise ValueError(f"form is {name!r}; expected one of {', '.join(FORMS)}")
    return FORMS[name]


@functools.cache
def _pairs(form: str) -> list[str]:
    """All pairs of digits, in order: two digits at a time take half the time."""
    return ["".join(pair) for pair in itertools.product(FORMS[form].digits, repeat=2)]


def to_string(number: int, form: str = "base62") -> str:
    """The ID in `form`: 16 hex digits, 13 of Crockford's base 32, or 11 of base 62 (digits, capitals, small letters).

    Strings of one form compare like the IDs, byte by byte (a database's collation for base62 must be binary).
    """
    _, width, _, spec = _form(form)
    rest = check_int("id", number, 0, _MAX, " (63 bits)")
    if spec:
        return format(rest, spec)
    pairs = _pairs(form)
    base, text = len(pairs), ""
    while rest:
        rest, pair = divmod(rest, base)
        text = pairs[pair] + text
    return text[-width:].rjust(width, pairs[0][0])


def from_string(text: str, form: str = "base62") -> int:
    """The ID that `text` spells in `form`; ValueError where it spells none."""
    digits, width, *_ = _form(form)
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r} ({type(text).__name__}); expected a str")
    if len(text) != width:
        raise ValueError(f"text is {text[:80]!r}, {len(text)} characters; expected {width} of {form}")
    values, number = _VALUES[form], 0
    for character in text:
        if character not in values:
            raise ValueError(f"text is {text!r}, and {character!r} is no digit of {form}")
        number = number * len(digits) + values[character]
    if number > _MAX:
        raise ValueError(f"text is {text!r}; expected at most {to_string(_MAX, form)!r} (63 bits)")
    return number


class Codec(NamedTuple):
    """How an API spells IDs. `pattern` is the regular expression of what `write` writes and `read` reads."""

    read: Callable[[object], int]
    write: Callable[[int], str]
    pattern: str


@functools.cache
def codec(form: str) -> Codec:
    """The codec of a form, or of "int", decimal digits. It reads ints, too (NumPy's, but no bool). What is no ID is a
    ValueError.
    """
    if form != "int" and form not in FORMS:
        raise ValueError(f"form is {form!r}; expected int, {', '.join(FORMS)}")

    def read(value: object) -> int:
        if isinstance(value, str):
            value = decimal("id", value) if form == "int" else from_string(value, form)
        try:
            return check_int("id", value, 0, _MAX, " (63 bits)")
        except TypeError as error:
            raise ValueError(str(error)) from None

    if form == "int":
        return Codec(read, lambda number: str(check_int("id", number, 0, _MAX, " (63 bits)")), "^[0-9]{1,19}$")
    digits = "".join([FORMS[form].digits, *FORMS[form].aliases])
    return Codec(read, functools.partial(to_string, form=form), f"^[{digits}]{{{FORMS[form].width}}}$")
