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

    def __str__(self) -> str:
        told = [f"{name} {cell}" for name, cell in zip(HEAD[2:], _row(self)[2:], strict=True) if cell not in (None, "")]
        return f"{self.path or '(model)'} ({self.cls}): fused: {', '.join(told)}"


@dataclass(frozen=True)
class Skipped:
    """A block that squeezes and gates, but was left as it is, or anything else that was looked at and is none.

    ``stage``: what was looked at when the ``reason`` came up; ``node``: of the module's graph; ``exception``: what its
    own code raised; ``details``: all of these; ``pools``: whether something is pooled, goes through layers and is
    multiplied back.
    """

    path: str
    cls: str
    reason: str
    stage: str = ""
    node: str = ""
    exception: str = ""
    details: str = ""
    pools: bool = True

    def __str__(self) -> str:
        return f"{self.path or '(model)'} ({self.cls}): {self.details}"


@dataclass(frozen=True)
class FusionReport:
    """``fused`` and ``skipped`` blocks in the order of the model; prints as a table.

    ``looked_at``: what else was looked at, and why it is no block. :meth:`explain` tells all of it about one module.
    """

    fused: list[Fused] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    looked_at: list[Skipped] = field(default_factory=list, repr=False)
    modules: dict[str, tuple[str, bool]] = field(default_factory=dict, repr=False)  # class, and whether it was visited

    @property
    def missed(self) -> list[Skipped]:
        """What pools and multiplies back, where nothing was found in the whole model."""
        if self.fused or self.skipped:
            return []
        pools = [entry for entry in self.looked_at if entry.pools]
        below = tuple({entry.path for entry in pools})  # modules around these see the same in them
        return [e for e in pools if not any(p != e.path and f"{p}.".startswith(e.path and f"{e.path}.") for p in below)]

    def explain(self, path: str) -> str:
        """What became of the module at ``path`` ("" for the model) and of those below it, in lines.

        Raises:
            ValueError: there was no such module.
        """
        if path not in self.modules:
            raise ValueError(f"path is {path!r}; expected the path of a module of the model that was fused")
        below = path and f"{path}."
        lines = []
        for at, (cls, visited) in self.modules.items():
            if at != path and not at.startswith(below):
                continue
            told = [str(entry) for entry in self.fused if entry.path == at]
            told += [str(entry) for entry in (*self.skipped, *self.looked_at) if entry.path == at]
            if not told and visited:
                told = [f"{at or '(model)'} ({cls}): nothing in its forward multiplies x by what is computed from x"]
            elif not told and at == path:
                told = [f"{at or '(model)'} ({cls}): not looked at: it has no layer that an excitation could have"]
            lines += told
        return "\n".join(dict.fromkeys(lines))

    def __str__(self) -> str:
        counts = f"{len(self.fused)} fused, {len(self.skipped)} skipped"
        if self.fused:
            counts = f"{_table(HEAD, map(_row, self.fused))}\n\n{counts}"
        missed = self.missed
        if self.skipped or missed:
            counts += ":" if self.skipped else ", though these may pool and multiply back:"
            rows = [[e.path or "(model)", e.cls, e.reason] for e in self.skipped or missed]
            counts += f"\n\n{_table(['path', 'class', 'reason'], rows)}"
        return counts


HEAD = ["path", "class", "channels", "hidden", "activation", "gate", "prologue", "epilogue"]


def _row(e: Fused) -> list[object]:
    return [e.path or "(model)", e.cls, e.channels, e.hidden, e.activation, e.gate, e.prologue, e.epilogue]


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
