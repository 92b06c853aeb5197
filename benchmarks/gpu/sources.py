"""What --resume may keep: what was passed or measured counts for the same sources alone. Standard library only."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".h", ".inl", ".cpp", ".cuh", ".cu", ".py"}
TESTED = ("csrc", "senet_fast", "tests")
MEASURED = ("csrc", "senet_fast", "benchmarks")


def fingerprint(folders: tuple[str, ...], root: Path = ROOT) -> str:
    """A hash of the sources in these folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def may_be_kept(before: Mapping[str, Any], now: str, what: str) -> bool:
    """Whether `before` has the fingerprint `now` in "sources"; says so if not."""
    same = before.get("sources") == now
    if not same:
        print(f"--resume: the sources have changed, so {what} again", flush=True)
    return same
