"""torchvision's wheel may not fit the installed torch."""

from benchmarks.libraries import define_torchvision_operators

define_torchvision_operators()
