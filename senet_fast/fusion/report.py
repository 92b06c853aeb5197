"""What fuse() did."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fused:
    """A block that uses the op now. ``path`` is "" for the model itself."""

    path: str
    cls: str
    channels: int | None  # None: any number (a convolution over channels)
    hidden: int | None
    activation: str
    gate: str
    prologue: str = ""
    epilogue: str = ""


@dataclass(frozen=True)
class Skipped:
    """A block that squeezes and gates, but was left as it is."""

    path: str
    cls: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """``fused`` and ``skipped`` blocks in the order of the model; prints as a table."""

    fused: list[Fused] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.fused)} fused, {len(self.skipped)} skipped"
        if self.fused:
            head = ["path", "class", "channels", "hidden", "activation", "gate", "prologue", "epilogue"]
            rows = [
                [e.path or "(model)", e.cls, e.channels, e.hidden, e.activation, e.gate, e.prologue, e.epilogue]
                for e in self.fused
            ]
            counts = f"{_table(head, rows)}\n\n{counts}"
        if self.skipped:
            rows = [[e.path or "(model)", e.cls, e.reason] for e in self.skipped]
            counts += f":\n\n{_table(['path', 'class', 'reason'], rows)}"
        return counts


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Columns as wide as they need; columns without any entry are left out."""
    texts = [head, *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    kept = [column for column in zip(*texts, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    lines = [
        "  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in zip(*kept, strict=True)
    ]
    return "\n".join([lines[0], *lines[1:]])
