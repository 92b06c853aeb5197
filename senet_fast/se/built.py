"""Which torch the op library beside this file was compiled for.

The build (setup.py) writes it into a file of its own, so that it can be asked where the library cannot be loaded.
"""

from pathlib import Path

FILE = Path(__file__).with_name("built_for_torch.txt")
COMMAND = "python -m senet_fast build"


def built_for() -> str | None:
    """torch's version, '2.13.0+cpu'; None where nobody wrote it down: no op was built."""
    try:
        return FILE.read_text().strip()
    except FileNotFoundError:
        return None


def release(version: str) -> str:
    """What one build serves: '2.13' of '2.13.0+cpu'."""
    return ".".join(version.split(".")[:2])


def another(running: str) -> str | None:
    """What to do where the op was compiled for another torch. The library itself would say: undefined symbol."""
    built = built_for()
    if built is None or release(built) == release(running):
        return None
    return (
        f"senet_fast's op was compiled for torch {release(built)} ({built}), and this is torch {running}; "
        f"compile it anew with `{COMMAND}`, or in a checkout with `make build`"
    )
