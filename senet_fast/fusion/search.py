"""One run of fuse(): what each module is, what will be done to it, and the report of that."""

from dataclasses import dataclass, field

from torch import fx, nn

from senet_fast.fusion.graph.observed import Calls
from senet_fast.fusion.graph.refusal import Refused, note, noted
from senet_fast.fusion.install import graphs, rewrite
from senet_fast.fusion.install.blocks import Finding, block
from senet_fast.fusion.install.graph_sites import in_graph
from senet_fast.fusion.install.hosts import enclose
from senet_fast.fusion.recognise.excitation import Excitation
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.report import Fused, FusionReport, Skipped
from senet_fast.fusion.run.forwards import BlockForward, HostForward
from senet_fast.fusion.run.guards import FORWARD


@dataclass
class Search:
    """Modules are visited children first; nothing is changed before :meth:`install`."""

    model: nn.Module
    calls: Calls
    blocks: dict[str, BlockForward] = field(default_factory=dict)
    hosts: dict[str, Finding] = field(default_factory=dict)  # of excitations in the middle of their forward
    graphs: dict[str, list[Site]] = field(default_factory=dict)
    reasons: dict[str, list[Refused]] = field(default_factory=dict)  # why blocks are left
    noted: dict[str, list[Refused]] = field(default_factory=dict)  # what else was refused, of modules looked at
    before: set[str] = field(default_factory=set)  # fused already

    def visit(self, path: str, module: nn.Module) -> None:
        forward = module.__dict__.get(FORWARD)
        if isinstance(forward, HostForward) and forward.is_stale(module):
            rewrite.restore(module)
            forward = None
        if forward is not None:
            self.before.add(path)
            return
        with noted() as refusals:
            if isinstance(module, fx.GraphModule):
                self.graphs[path], reasons = in_graph(module)
            else:
                reasons = self._visit(path, module)
        if reasons:
            self.reasons[path] = list({str(reason): reason for reason in reasons}.values())
        self.noted[path] = [refused for refused in refusals if refused not in reasons]

    def _visit(self, path: str, module: nn.Module) -> list[Refused]:
        below = path and f"{path}."
        accounted = (*self.blocks, *self.hosts, *self.before, *self.reasons)
        known = {p.removeprefix(below) for p in accounted if p.startswith(below)}
        calls = self.calls.recorded.get(path, ())
        found = block(module, known, [call.shapes[0] for call in calls if call.shapes])
        if isinstance(found.forward, BlockForward):
            self.blocks[path] = found.forward
            return found.reasons
        forwards = self._children(module, below)
        if not found.sites and not any("." not in p or self._reaches(module, p) for p in forwards):
            return found.reasons
        enclosed = enclose(module, found, forwards, known, self.calls.of(path))
        if enclosed.forward is not None:
            self.hosts[path] = enclosed
            return [*found.reasons, *enclosed.reasons]
        if not found.sites:
            for reason in enclosed.reasons:
                note(reason)
            return found.reasons
        why = enclosed.reasons or [Refused("install", "")]
        return [*found.reasons, *(reason.within("it is a part of a larger forward") for reason in why)]

    def _children(self, module: nn.Module, below: str) -> dict[str, BlockForward]:
        """Plans of the blocks below that no other host has."""
        forwards = {p.removeprefix(below): forward for p, forward in self.blocks.items() if p.startswith(below)}
        for p in self.before:
            if p.startswith(below) and p != below[:-1]:
                forward = self.model.get_submodule(p).__dict__[FORWARD]
                if isinstance(forward, BlockForward):
                    forwards[p.removeprefix(below)] = forward
        hosts = [p.removeprefix(below) + "." for p in (*self.hosts, *self.before) if p.startswith(below)]
        return {p: forward for p, forward in forwards.items() if not any(p.startswith(host) for host in hosts)}

    @staticmethod
    def _reaches(module: nn.Module, path: str) -> bool:
        """Whether the module's own forward may call the child at ``path``: only containers are in between."""
        names = path.split(".")[:-1]
        between = [module.get_submodule(".".join(names[: i + 1])) for i in range(len(names))]
        return all(isinstance(part, nn.ModuleList | nn.ModuleDict | nn.Sequential) for part in between)

    def report(self) -> FusionReport:
        modules = dict(self.model.named_modules())
        names = {path: type(module).__name__ for path, module in modules.items()}
        neighbours: dict[str, tuple[str, str]] = {}
        entries: dict[str, list[Fused]] = {}
        for path, host in self.hosts.items():
            for site in host.sites:
                if site.owner is None:
                    entries.setdefault(path, []).append(_entry(path, names[path], site.excitation, *_beside(site)))
                else:
                    neighbours[".".join(filter(None, (path, str(site.owner))))] = _beside(site)
        for path, forward in self.blocks.items():
            entries[path] = [_entry(path, names[path], forward.op.excitation, *neighbours.get(path, ("", "")))]
        for path, sites in self.graphs.items():
            entries[path] = [_entry(path, names[path], site.excitation, *_beside(site)) for site in sites]
        fused = [entry for path in modules for entry in entries.get(path, ())]
        left, looked_at = (
            [_left(path, names[path], reason, not self.before) for path in modules for reason in refused.get(path, ())]
            for refused in (self.reasons, self.noted)
        )
        return FusionReport(fused, left, looked_at, {path: (name, path in self.noted) for path, name in names.items()})

    def install(self) -> None:
        modules = dict(self.model.named_modules())
        for path, forward in self.blocks.items():
            rewrite.install(modules[path], forward)
        for path, host in self.hosts.items():
            assert host.forward is not None
            rewrite.install(modules[path], host.forward)
        for path, sites in self.graphs.items():
            module = modules[path]
            if sites and isinstance(module, fx.GraphModule):
                graphs.install(module, sites[0].y.graph, sites)


def _entry(path: str, cls: str, e: Excitation, prologue: str = "", epilogue: str = "") -> Fused:
    gate = f"1 + {e.gate}" if e.add_one else e.gate
    return Fused(path, cls, e.channels, e.hidden, e.activation, gate, prologue, epilogue)


def _left(path: str, cls: str, refused: Refused, alone: bool) -> Skipped:
    pools = refused.pools and alone  # beside what was fused before nothing is missing
    return Skipped(path, cls, str(refused), refused.stage, refused.node, refused.exception, refused.details, pools)


def _beside(site: Site) -> tuple[str, str]:
    """Prologue and epilogue for the report."""
    conv = {} if site.conv is None else {site.conv.side: str(site.conv)}
    front = (str(site.front or ""), conv.get("output"), str(site.prologue or ""))
    behind = (str(site.epilogue or ""), conv.get("input"), site.place)
    return ", ".join(filter(None, front)), ", ".join(filter(None, behind))
