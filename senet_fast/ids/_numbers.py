"""What counts as a number."""

from __future__ import annotations

import operator
import re
from typing import Any


def check_int(name: str, value: Any, low: int, high: int, why: str = "") -> int:
    """`value` as an int within low..high, or an error that names the argument, its value and what was expected."""
    if type(value) is not int and (isinstance(value, bool) or not hasattr(value, "__index__")):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an int")
    number = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name} = {number}; expected {low} <= {name} <= {high}{why}")
    return number


def decimal(name: str, text: str) -> int:
    """The number that `text` spells in the digits 0 to 9, and in nothing looser: int() reads signs, underscores, spaces
    and the digits of other scripts, too.
    """
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise ValueError(f"{name} is {text[:80]!r}; expected a decimal number, of 1 to 19 of the digits 0 to 9")
    return int(text)
