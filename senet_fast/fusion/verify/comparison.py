"""How far results may be from each other."""

import math

from torch import Tensor

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative to the largest element, in float32


def largest_difference(expected: Tensor, actual: Tensor) -> float:
    """Relative to the largest element; infinite for another shape, type or NaN."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf
    difference = float((expected - actual).detach().abs().max()) / max(float(expected.detach().abs().max()), 1e-30)
    return math.inf if math.isnan(difference) else difference
