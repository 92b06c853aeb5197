"""torchvision's wheel may not fit the installed torch: then the operators that its Python declares are missing."""

import contextlib

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # torchvision's own are there
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
