"""Tables whose rows are taken a few at a time: which of them, and their place among the rows of earlier runs."""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from tqdm import tqdm

from benchmarks.report import add_options, save

MOST_MOVED = 16 << 20  # bytes


class Row(Protocol):
    """`id`: its words, with a space between them."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)


class Mode(NamedTuple):
    """One row of a table of networks: ``kind`` is "forward" (inference) or "step" (of training)."""

    network: str
    kind: str
    batch: int
    layout: str

    @property
    def id(self) -> str:
        return f"{self.network} {self.kind} {self.batch} {self.layout}"


def moved(call: Callable[[], object]) -> float:
    """The seconds of one call, whose tensors lie elsewhere than those of the last.

    Each contender finds the memory as the one before left it: the same in every round, and worth 5 % between two copies
    of one network.
    """
    pad = torch.empty(random.randrange(MOST_MOVED), dtype=torch.uint8)
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    del pad
    return seconds


def row_options(parser: argparse.ArgumentParser, name: str, example: str) -> None:
    """-k, --list, --json and --readme; `name` is the JSON file's."""
    parser.add_argument("-k", default="", metavar="WORDS", help=f'only modes with these words, as in "{example}"')
    parser.add_argument("--list", action="store_true", help="print the modes and stop")
    add_options(parser, name)


def selected(options: argparse.Namespace, modes: Sequence[R]) -> list[R]:
    """Those with all words of -k. Exits where --list asks for them, and where there is none."""
    found = [mode for mode in modes if {*options.k.split()} <= {*mode.id.split()}]
    if not found:
        raise SystemExit(f"no mode has all of {options.k}")
    if options.list:
        print("\n".join(mode.id for mode in found))
        raise SystemExit(0)
    return found


def take(
    options: argparse.Namespace,
    modes: Sequence[R],
    wanted: Sequence[R],
    where: dict[str, Any],
    measure: Callable[[R], dict[str, Any]],
) -> dict[str, Any]:
    """`where` with the rows of `wanted`, measured one by one and saved after each, beside those the file has of others.

    The file's rows stay where `where` has the machine and the versions that it has.
    """
    rows = {row["mode"]: row for row in _earlier(options.json, where)}
    results = {**where, "rows": []}
    for mode in (progress := tqdm(wanted)):
        progress.set_description(mode.id)
        rows[mode.id] = {"mode": mode.id, **measure(mode)}
        results["rows"] = [rows[one.id] for one in modes if one.id in rows]
        save(options, results)
    return results


def _earlier(path: Path, where: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    other = [key for key in ("machine", "versions") if earlier[key] != where[key]]
    if other:
        print(f"{path}: its {len(earlier['rows'])} rows go, taken with another {' and other '.join(other)}")
    return [] if other else earlier["rows"]
