"""Which of the package's ops a call makes."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


def ops(run: Callable[[], object]) -> list[str]:
    """Names of the package's ops that ``run`` calls, but for those that look at weights and prepare them."""
    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function.namespace == "senet_fast":
                names.append(function.name().removeprefix("senet_fast::"))
            return function(*args, **(kwargs or {}))

    with Record():
        run()
    return [name for name in names if name not in ("fingerprint", "squeeze_excite_conv_prepare")]
