"""The dictionaries that the compiled module makes are what its stub declares; stubtest compares functions alone."""

import ast
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from senet_fast.se import _C

STUB = Path(__file__).resolve().parents[2] / "senet_fast/se/_C.pyi"


def declared() -> dict[str, Any]:
    """The stub's classes, run as Python."""
    tree = ast.parse(STUB.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.decorator_list = []  # type_check_only, which typing has for checkers alone
        elif isinstance(node, ast.ImportFrom):
            node.names = [name for name in node.names if name.name != "type_check_only"]
    made: dict[str, Any] = {}
    exec(compile(tree, str(STUB), "exec"), made)
    return {node.name: made[node.name] for node in tree.body if isinstance(node, ast.ClassDef)}


CLASSES = declared()
TICKET = _C.plan_cuda(8, 1, 256, 3136, kernel="ticket")
CLUSTER = _C.plan_cuda(8, 1, 1024, 196, kernel="cluster", backward=True, residual=True)
OBJECTS = [
    ("BuildInfo", _C.build_info()),
    ("CudaInfo", _C.build_info()["cuda"]),
    ("Plan", _C.plan(8, 1, 256, 3136, 16)),
    ("CudaPlan", TICKET),
    ("CudaPlan", CLUSTER),
    ("ClusterPlan", CLUSTER["cluster"]),
    ("ConvPlan", _C.plan_conv(8, 64, 3136, 256, 16)),
    ("ConvPlan", _C.plan_conv(8, 64, 1, 256, 16)),  # not fused
]


def holds(value: Any, kind: Any) -> bool:
    """Whether the value is exactly of the annotation's kind: a bool is no int here."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(holds(value, one) for one in arguments)
    if typing.get_origin(kind) is typing.Literal:
        return value in arguments
    if typing.get_origin(kind) is tuple:
        return type(value) is tuple and len(value) == len(arguments) and all(map(holds, value, arguments))
    if typing.get_origin(kind) is list:
        return type(value) is list and all(holds(one, *arguments) for one in value)
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return type(value) is dict and list(value) == list(hints) and all(holds(value[k], t) for k, t in hints.items())
    return type(value) is kind


@pytest.mark.parametrize(("name", "made"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_fields(name: str, made: Any) -> None:
    if name == "CudaInfo" and made is None:
        pytest.skip("this build has no CUDA")
    hints = typing.get_type_hints(CLASSES[name])
    assert list(made) == [field for field in hints if field in made or field in CLASSES[name].__required_keys__]
    assert {field: made[field] for field, kind in hints.items() if field in made and not holds(made[field], kind)} == {}


def test_every_class_is_compared() -> None:
    assert {name for name, _ in OBJECTS} == {*CLASSES}
