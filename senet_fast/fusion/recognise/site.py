"""An excitation in a graph, together with what the op can take over beside it."""

from dataclasses import dataclass

from torch import fx

from senet_fast.fusion.recognise.excitation import Excitation, Path
from senet_fast.fusion.recognise.neighbours import Epilogue, Prologue


@dataclass
class Site:
    """An excitation in a graph; ``block``: its nodes, y's included."""

    x: fx.Node
    y: fx.Node
    block: list[fx.Node]
    excitation: Excitation
    owner: Path
    fused: bool = False  # whether it is the fused child at ``owner``; else it is written out
    prologue: Prologue | None = None
    epilogue: Epilogue | None = None
    maker: list[str] | None = None

    @property
    def last(self) -> fx.Node:
        return self.epilogue.last if self.epilogue is not None else self.y

    @property
    def source(self) -> fx.Node:
        return self.prologue.source if self.prologue is not None else self.x

    @property
    def place(self) -> str:
        return "in place" if self.maker is not None else ""

    @property
    def pays(self) -> bool:
        """Whether the fused child by itself would do less."""
        return not self.fused or self.has_neighbours

    @property
    def has_neighbours(self) -> bool:
        return any(part is not None for part in (self.prologue, self.epilogue, self.maker))
