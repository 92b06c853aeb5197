"""Fused Squeeze-and-Excitation: the op, the module, and their readable twins.

Importing this package imports torch and registers the ops: the module ``senet_fast.se._C`` is linked to the op library
``libsenet_fast.so`` beside it, which other programs may load without Python.
"""

import torch  # its libraries must be loaded before ours

from senet_fast.se import built

if another := built.another(torch.__version__):
    raise ImportError(another)
try:
    import senet_fast.se._C as _C
except ImportError as error:
    raise ImportError(
        f"the compiled op senet_fast.se._C could not be loaded ({error}); compile it for this torch and Python with "
        f"`{built.COMMAND}`, or in a checkout with `make build`"
    ) from error

from senet_fast.se import reference
from senet_fast.se.module import FusedSE
from senet_fast.se.ops import squeeze_excite
from senet_fast.se.reference import SEBlock

__all__ = ["_C", "FusedSE", "SEBlock", "reference", "squeeze_excite"]
