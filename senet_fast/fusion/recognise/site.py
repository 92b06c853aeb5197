"""An excitation in a graph, together with what the op can take over beside it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from senet_fast.fusion.graph.nodes import readers, writes
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.recognise.excitation import Excitation, Path
from senet_fast.fusion.recognise.neighbours import (
    Epilogue,
    Pointwise,
    Prologue,
    epilogue_of,
    maker_of,
    pointwise_before,
    pointwise_behind,
    prologue_of,
)


@dataclass
class Site:
    """y is an excitation of x, all in one graph; ``block``: its nodes, y's included."""

    x: fx.Node
    y: fx.Node
    block: list[fx.Node]
    excitation: Excitation
    product: fx.Node | None = None  # y or, for x + x * gate, what is added
    owner: Path | None = None  # of the fused child that it is the call of; None where it is written out
    prologue: Prologue | None = None
    epilogue: Epilogue | None = None
    conv: Pointwise | None = None
    front: Prologue | None = None  # of a convolution in front
    maker: list[str] | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """What the op takes the place of, in its order."""
        parts = (self.front, self._conv_in_front, self.prologue, self.epilogue, self._conv_behind)
        front, first, before, after, last = (part.nodes if part is not None else () for part in parts)
        return [*front, *first, *before, *self.block, *after, *last]

    @property
    def _conv_in_front(self) -> Pointwise | None:
        return self.conv if self.conv is not None and self.conv.side == "output" else None

    @property
    def _conv_behind(self) -> Pointwise | None:
        return self.conv if self.conv is not None and self.conv.side == "input" else None

    @property
    def last(self) -> fx.Node:
        part = self._conv_behind or self.epilogue
        return part.last if part is not None else self.y

    @property
    def source(self) -> fx.Node:
        part = self.front or self._conv_in_front or self.prologue
        return part.source if part is not None else self.x

    @property
    def residual(self) -> fx.Node | None:
        part = self._conv_behind or self.epilogue
        return part.residual if part is not None else None

    @property
    def place(self) -> str:
        return "in place" if self.maker is not None and self.conv is None else ""

    @property
    def children(self) -> list[str]:
        """Paths of the modules whose calls are in it."""
        return list(dict.fromkeys(str(node.target) for node in self.block if node.op == "call_module"))

    @property
    def pays(self) -> bool:
        """Whether the fused child by itself would do less."""
        return self.owner is None or self.has_neighbours

    @property
    def has_neighbours(self) -> bool:
        return any(part is not None for part in (self.prologue, self.epilogue, self.conv, self.maker))


def check_reads_only(module: nn.Module, site: Site) -> None:
    """Refused where the excitation, or something beside it from its first node on, writes to x."""
    ends = [node for node in (site.product, site.y) if node is not None]
    if any(writes(node) for node in ends):
        raise Refused("site", "it changes its input in place", node=site.y)
    later = [user for user in site.x.users if user not in ends and not user < site.block[0]]
    if any(writes(user, module, site.x) for user in later):
        raise Refused("site", "x is changed in place beside it", node=site.x)


def add_neighbours(module: nn.Module, site: Site, training: bool, inference: bool, free: Callable[..., bool]) -> None:
    """``training``, ``inference``: the modes that it is for. ``free``: whether the op may take over these nodes."""
    rank = site.excitation.dims[0][0]
    epilogue = epilogue_of(module, site.y, rank, training)
    site.epilogue = epilogue if epilogue is not None and free(epilogue.nodes) else None
    alone = all(user in site.block for user in readers(site.x))  # and nothing of the block but y is used
    if not alone or any(user not in site.block for node in site.block[:-1] for user in node.users):
        return
    asked = any(user not in site.block for user in site.x.users)  # for the size of x, which would not be there
    inward = inference and not asked and all(dim == 1 for _, dim in site.excitation.dims)
    if inward:
        found = prologue_of(module, site.x, rank)
        site.prologue = found if found is not None and free(found.nodes) else None
    site.maker = maker_of(module, site.source) if inference else None
    if inward:
        conv = pointwise_behind(module, site.y, rank) or _pointwise_before(module, site)
        site.conv = conv if conv is not None and free(conv.nodes) else None
        first = site._conv_in_front
        if first is not None and [*first.source.users] == [first.last]:
            front = prologue_of(module, first.source, rank)
            site.front = front if front is not None and free(front.nodes) else None


def _pointwise_before(module: nn.Module, site: Site) -> Pointwise | None:
    """Only a norm may be between: a mean does not commute with an activation."""
    linear = site.prologue is None or site.prologue.activation == "identity"
    found = pointwise_before(module, site.source) if linear else None
    own = {*site.nodes, *(found.nodes if found is not None else ())}
    return found if own.issuperset(site.source.users) else None
