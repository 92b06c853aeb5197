"""Fused Squeeze-and-Excitation for PyTorch, and Snowflake IDs.

Importing this package imports neither torch nor NumPy: every public name is loaded on first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from senet_fast._version import __version__

if TYPE_CHECKING:
    from senet_fast import ids as ids
    from senet_fast import se as se
    from senet_fast.fusion import FusionReport as FusionReport
    from senet_fast.fusion import fuse as fuse
    from senet_fast.fusion import unfuse as unfuse
    from senet_fast.fusion.install.compiling import compile_pass as compile_pass
    from senet_fast.ids import Layout as Layout
    from senet_fast.ids import Snowflake as Snowflake
    from senet_fast.se import FusedSE as FusedSE
    from senet_fast.se import SEBlock as SEBlock
    from senet_fast.se import squeeze_excite as squeeze_excite

_HOME = {
    "FusedSE": "senet_fast.se",
    "SEBlock": "senet_fast.se",
    "squeeze_excite": "senet_fast.se",
    "FusionReport": "senet_fast.fusion",
    "fuse": "senet_fast.fusion",
    "unfuse": "senet_fast.fusion",
    "compile_pass": "senet_fast.fusion.install.compiling",
    "Layout": "senet_fast.ids",
    "Snowflake": "senet_fast.ids",
}

__all__ = [
    "FusedSE",
    "FusionReport",
    "Layout",
    "SEBlock",
    "Snowflake",
    "__version__",
    "compile_pass",
    "fuse",
    "squeeze_excite",
    "unfuse",
]


def __getattr__(name: str) -> Any:
    if name in ("ids", "se"):
        return import_module(f"senet_fast.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'senet_fast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "ids", "se"})
