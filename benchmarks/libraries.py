"""Networks of other packages, as `make networks` installs them: without what their own wheels ask for."""

import torch


def define_torchvision_operators() -> None:
    """timm imports torchvision, whose wheel may not fit the installed torch: then it lacks operators that its Python
    declares, and cannot be imported before somebody has defined them. Networks use none of them.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:  # operator torchvision::nms does not exist
        _library.extend([torch.library.Library("torchvision", "FRAGMENT")])
        for name in ("nms", "qnms"):
            _library[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_library: list[torch.library.Library] = []  # an operator lives as long as the library that has defined it
